"""A migration's commands, as controller/migration/commands.py describes them, on this engine.

Memory processes copy beside serving. What concerns the ranks is done between two steps, on the
engine's thread, and the map changes there only.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from controller.elastic.devices import Devices, LostDeviceError
from controller.elastic.hmm import Copy as CopyPages
from controller.elastic.hmm import Digests, Free
from controller.local_engine.arrivals import (
    Arrivals,
    Copying,
    RefusedError,
    check_place,
    text,
)
from controller.local_engine.expert_map import ExpertMap
from controller.local_engine.loading import Loaded
from controller.local_engine.model.weights import Sizes
from controller.local_engine.ranks.group import EngineError, RankLostError, Ranks
from controller.local_engine.ranks.messages import Holds, Report, Staged
from controller.local_engine.requests import Batch
from controller.local_engine.resizing import Resizing
from controller.migration.commands import (
    DOING,
    Agree,
    Command,
    Commit,
    Copy,
    Discard,
    Done,
    Drop,
    Lost,
    Outcome,
    Refused,
    Release,
    Stage,
    Switch,
    Transfer,
    Verify,
)
from placer import schedule as scheduled
from placer.checks import violations
from placer.objective import Objective

NOTHING = Staged(0, "")
BATCH = 16  # pages that are copied before somebody else may ask a memory process


class BetweenSteps(Protocol):
    """Runs something on the engine's thread, no step being under way.

    Returns the seconds that it took. Raises what it raised; RankLostError after the repair.
    """

    def __call__(self, work: Callable[[], Any]) -> float: ...


class Migration:
    """One engine's side of it. rate: bytes a second that a device may copy for another width"""

    def __init__(
        self,
        ranks: Ranks,
        devices: Devices,
        batch: Batch,
        sizes: Sizes,
        loaded: Loaded,
        rate: float,
    ) -> None:
        self._ranks, self._devices, self._loaded = ranks, devices, loaded
        self._staged = NOTHING
        self._arrivals = Arrivals(devices.layout.pages)
        self._resizing = Resizing(ranks, devices, batch, sizes, loaded, rate)
        self._one_at_a_time = threading.Lock()

    @property
    def served(self) -> ExpertMap:
        """The map that steps go by."""
        return self._ranks.served

    def forget(self) -> None:
        """What was staged: it started from a map that was lost. On the engine's thread."""
        self._staged = NOTHING
        self._arrivals.forget()
        self._resizing.lose()

    def give_back(self) -> None:
        """The memory of devices that no rank has."""
        self._resizing.give_back()

    def carry_out(self, command: Command, between_steps: BetweenSteps) -> Outcome:
        with self._one_at_a_time:
            self._copied_bytes, self._pause_s = 0, 0.0
            self._between_steps = between_steps
            try:
                self._do(command)
            except RefusedError as no:
                return Refused(str(no))
            except (EngineError, LostDeviceError) as error:
                return Lost(str(error))
            except RankLostError as lost:
                names = " and ".join(f"rank {rank}" for rank in lost.ranks) or "a rank"
                return Lost(
                    f"{names} of the engine went away while {DOING[type(command)]}"
                    ": it was started again"
                )
            return Done(self._copied_bytes, self._pause_s)

    def _do(self, command: Command) -> None:
        if isinstance(command, Stage):
            return self._stage(command)
        if isinstance(command, Discard):
            return self._discard(command)
        if command.epoch != self._staged.epoch:
            staged = f"{self._staged.epoch} is" if self._staged.epoch else "nothing is"
            raise RefusedError(f"epoch {command.epoch} is not staged ({staged}): stage it first")
        match command:
            case Agree():
                self._agree()
            case Drop(round=round):
                self._in_between(partial(self._drop, round.drops))
            case Copy(round=round):
                self._copy(round.copies)
            case Commit(round=round):
                self._in_between(partial(self._commit, round.commits))
            case Verify(digest=digest):
                self._verify(digest)
            case _:
                self._resize(command)
        return None

    def _resize(self, command: Command) -> None:
        match command:
            case Transfer():
                self._copied_bytes = self._resizing.transfer()
                self._in_between(self._resizing.prepare)
            case Switch():
                self._in_between(self._resizing.switch)
                self._copied_bytes = self._resizing.handed_over_bytes
            case Release():
                self._resizing.release()

    def _discard(self, command: Discard) -> None:
        if self._staged != NOTHING and self._staged.epoch <= command.epoch:
            self._clear()
            self._in_between(partial(self._hold, NOTHING))

    def _in_between(self, work: Callable[[], Any]) -> None:
        self._pause_s = max(self._pause_s, self._between_steps(work))

    def _stage(self, command: Stage) -> None:
        before, after, now = command.before, command.after, self.served.placement
        change = Staged(command.epoch, after.digest)
        if command.epoch < 1:
            raise RefusedError(f"epoch {command.epoch} is not one: number changes from 1")
        if before.digest != now.digest:
            raise RefusedError(
                f"the engine serves {now.digest}, not {before.digest}: plan from its map"
            )
        if (after.layers, after.experts) != (now.layers, now.experts) or (
            after.gpus == now.gpus and after.slots != now.slots
        ):
            raise RefusedError(f"the change leads to {after.shape}, the engine has {now.shape}")
        if found := violations(after, Objective(allow_duplicates=True)):
            raise RefusedError(found[0])
        if change == self._staged:
            return
        self._clear()
        if after.gpus == now.gpus:
            self._in_between(partial(self._hold, change))
        else:
            self._resizing.stage(after)
            self._staged = change

    def _clear(self) -> None:
        """What was copied for the last change, or made ready, is free again."""
        for rank, pages in self._arrivals.pages(self.served).items():
            self._free(rank, pages)
        self._arrivals.forget()
        if self._resizing.is_staged:
            self._in_between(self._ranks.forget)
            self._resizing.discard()

    def _hold(self, change: Staged) -> None:
        self._staged = change
        self._ranks.stage(change)

    def _agree(self) -> None:
        """Those of another width agree by getting ready for it: all have to, and some are new."""
        if self._resizing.is_staged:
            return
        self._in_between(self._check_staged)

    def _check_staged(self) -> None:
        for rank, holds in enumerate(self._reports()):
            if holds.staged != self._staged:
                raise RefusedError(
                    f"rank {rank} holds epoch {holds.staged.epoch} {holds.staged.digest}, not"
                    f" {self._staged.epoch} {self._staged.digest}: stage it again"
                )

    def _reports(self) -> list[Holds]:
        return self._ranks.ask_all(Report())

    def _drop(self, drops: Sequence[tuple[int, int]]) -> None:
        for layer, slot in drops:
            check_place(self.served, layer, slot)
        self._serve(_complete(self.served.without(drops)))

    def _commit(self, commits: Sequence[scheduled.Transfer]) -> None:
        served = _complete(self._arrivals.committed(self.served, commits))
        self._arrivals.leave(commits)
        self._serve(served)

    def _serve(self, served: ExpertMap) -> None:
        if served.same_as(self.served):
            return
        before = [self.served.pages_in_use(rank) for rank in range(served.ranks)]
        self._ranks.serve(served)
        for rank, pages in enumerate(before):
            self._free(rank, pages - served.pages_in_use(rank))

    def _free(self, rank: int, pages: Collection[int]) -> None:
        if pages:
            self._devices.ask(self._ranks.order[rank], Free(sorted(pages)))

    def _copy(self, copies: Sequence[scheduled.Transfer]) -> None:
        """Memory processes copy side by side."""
        waiting: dict[int, list[Copying]] = defaultdict(list)
        for one in self._arrivals.plan(self.served, copies):
            waiting[one.copy.gpu].append(one)
        while any(waiting.values()):
            now = {}
            for rank, left in waiting.items():
                same = [one for one in left[:BATCH] if one.copy.source == left[0].copy.source]
                if same:
                    now[rank], waiting[rank] = same, [one for one in left if one not in same]
            self._copy_pages(now)

    def _copy_pages(self, now: Mapping[int, list[Copying]]) -> None:
        device = self._ranks.order
        messages: dict[int, tuple[object, int | None]] = {}
        for rank, batch in now.items():
            source = device[batch[0].copy.source]
            pages = [(one.source_page, one.filled) for one in batch]
            message = CopyPages(self._devices.name(source), False, pages, 0.0)
            messages[device[rank]] = message, source
        self._devices.ask_all(messages)
        for rank, batch in now.items():
            made = self._devices.ask(
                device[rank], Digests(False, [one.filled.page for one in batch])
            )
            for one, digest in zip(batch, made, strict=True):
                copy = one.copy
                if digest != self._loaded.experts[copy.layer][copy.expert]:
                    raise RefusedError(
                        f"{text(copy)} is not what was loaded: copy from another rank"
                    )
                self._arrivals.add(copy, one.filled.page)
                if copy.source != copy.gpu:
                    self._copied_bytes += self._devices.layout.page_size

    def _verify(self, digest: str) -> None:
        self._in_between(partial(self._verify_map, digest))
        for rank, device in enumerate(self._ranks.order):
            self._verify_weights(rank, device)

    def _verify_map(self, digest: str) -> None:
        if (now := self.served.placement.digest) != digest:
            raise RefusedError(f"the engine serves {now}, not {digest}")
        for rank, holds in enumerate(self._reports()):
            if not holds.served.same_as(self.served):
                raise RefusedError(f"rank {rank} serves another map than the engine")

    def _verify_weights(self, rank: int, device: int) -> None:
        held = self.served.filled(rank)
        dense, *found = self._devices.ask(device, Digests(True, [one.page for one in held]))
        if dense != self._loaded.dense:
            raise RefusedError(f"the dense weights of rank {rank} are not what was loaded")
        for one, digest in zip(held, found, strict=True):
            if digest != self._loaded.experts[one.layer][one.expert]:
                raise RefusedError(
                    f"layer {one.layer}: page {one.page} of rank {rank} does not hold expert "
                    f"{one.expert}'s weights"
                )


def _complete(served: ExpertMap) -> ExpertMap:
    """The same, if no expert is lost in it."""
    if lost := served.lost():
        raise RefusedError(f"layer {lost[0]} would lose expert {lost[1]}: copy it first")
    return served
