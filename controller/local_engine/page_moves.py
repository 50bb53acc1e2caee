"""A migration's commands, as controller/migration/commands.py describes them, on this engine.

What a command does is done between two steps, in pieces no longer than a page a rank; the pieces
run on the engine's thread, and the map changes there only.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, Protocol

import numpy as np

from controller.local_engine.arrivals import (
    Arrivals,
    RefusedError,
    check_place,
    text,
)
from controller.local_engine.expert_map import ExpertMap
from controller.local_engine.rank_messages import CopyPage, Digests, Holds, Report, Serve, Staged
from controller.local_engine.ranks import EngineError, RankLostError, Ranks
from controller.local_engine.shared_memory import Layout
from controller.migration.commands import (
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
    Stage,
    Verify,
)
from placer.checks import violations
from placer.objective import Objective
from placer.placement import EMPTY
from placer.schedule import Transfer

NOTHING = Staged(0, "")
DOING = {
    Stage: "staging",
    Agree: "agreeing",
    Drop: "dropping",
    Copy: "copying",
    Commit: "committing",
    Verify: "verifying",
    Discard: "discarding",
}


class BetweenSteps(Protocol):
    """Runs something on the engine's thread, no step being under way.

    Returns the seconds that it took. Raises what it raised; RankLostError after the repair.
    """

    def __call__(self, work: Callable[[], Any]) -> float: ...


class Migration:
    """One engine's side of it. ``served`` is the map that steps go by.

    digests: [layers][experts] of the pages as they were read from the checkpoint
    """

    def __init__(
        self, served: ExpertMap, layout: Layout, digests: Sequence[Sequence[str]], ranks: Ranks
    ) -> None:
        self.served = served
        self._sizes, self._digests, self._ranks = layout.sizes, digests, ranks
        self._staged = NOTHING
        self._arrivals = Arrivals(layout.pages)
        self._one_at_a_time = threading.Lock()

    def carry_out(self, command: Command, between_steps: BetweenSteps) -> Outcome:
        with self._one_at_a_time:
            self._copied_bytes, self._pause_s = 0, 0.0
            self._between_steps = between_steps
            try:
                self._do(command)
            except RefusedError as no:
                return Refused(str(no))
            except EngineError as error:
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
            if self._staged != NOTHING and self._staged.epoch <= command.epoch:
                self._in_between(partial(self._hold, NOTHING))
            return None
        if command.epoch != self._staged.epoch:
            staged = f"{self._staged.epoch} is" if self._staged.epoch else "nothing is"
            raise RefusedError(f"epoch {command.epoch} is not staged ({staged}): stage it first")
        match command:
            case Agree():
                self._in_between(self._agree)
            case Drop(round=round):
                self._in_between(partial(self._drop, round.drops))
            case Copy(round=round):
                self._copy(round.copies)
            case Commit(round=round):
                self._in_between(partial(self._commit, round.commits))
            case Verify(digest=digest):
                self._verify(digest)
        return None

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
        if after.shape != now.shape:
            raise RefusedError(f"the change leads to {after.shape}, the engine has {now.shape}")
        if found := violations(after, Objective(allow_duplicates=True)):
            raise RefusedError(found[0])
        if change != self._staged:
            self._in_between(partial(self._hold, change))

    def _hold(self, change: Staged) -> None:
        """Another change, or none: what was copied for the last one is free again."""
        self._arrivals.forget()
        self._staged = change
        self._ranks.hold(change)

    def _agree(self) -> None:
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

    def _commit(self, commits: Sequence[Transfer]) -> None:
        served = _complete(self._arrivals.committed(self.served, commits))
        self._arrivals.leave(commits)
        self._serve(served)

    def _serve(self, served: ExpertMap) -> None:
        if not served.same_as(self.served):
            self.served = served
            self._ranks.hold(Serve(served))

    def _copy(self, copies: Sequence[Transfer]) -> None:
        """A page into each rank at a time."""
        waiting: dict[int, deque[tuple[Transfer, CopyPage]]] = defaultdict(deque)
        for copy, page in self._arrivals.plan(self.served, copies):
            waiting[copy.gpu].append((copy, page))
        while any(waiting.values()):
            now = {rank: pages.popleft() for rank, pages in waiting.items() if pages}
            self._in_between(partial(self._copy_pages, now))

    def _copy_pages(self, now: dict[int, tuple[Transfer, CopyPage]]) -> None:
        made = self._ranks.ask({rank: page for rank, (_, page) in now.items()})
        for rank, (copy, page) in now.items():
            if made[rank] != self._digests[copy.layer][copy.expert]:
                raise RefusedError(f"{text(copy)} is not what was loaded: copy from another rank")
            self._arrivals.add(copy, page.page)
            if copy.source != copy.gpu:
                self._copied_bytes += self._sizes.page * np.float32().itemsize

    def _verify(self, digest: str) -> None:
        self._in_between(partial(self._verify_map, digest))
        for layer in range(self._sizes.layers):
            self._in_between(partial(self._verify_weights, layer))

    def _verify_map(self, digest: str) -> None:
        if (now := self.served.placement.digest) != digest:
            raise RefusedError(f"the engine serves {now}, not {digest}")
        for rank, holds in enumerate(self._reports()):
            if not holds.served.same_as(self.served):
                raise RefusedError(f"rank {rank} serves another map than the engine")

    def _verify_weights(self, layer: int) -> None:
        found = list(chain(*self._ranks.ask_all(Digests(layer))))
        for slot, expert in enumerate(self.served.table[layer].tolist()):
            if expert != EMPTY and found[slot] != self._digests[layer][expert]:
                raise RefusedError(
                    f"layer {layer}: slot {slot} does not hold expert {expert}'s weights"
                )


def _complete(served: ExpertMap) -> ExpertMap:
    """The same, if no expert is lost in it."""
    if lost := served.lost():
        raise RefusedError(f"layer {lost[0]} would lose expert {lost[1]}: copy it first")
    return served
