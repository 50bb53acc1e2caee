"""The processes of an engine's ranks: asked, replaced when they die, and changed in number.

Ranks that are not needed are standbys: started and ready, without weights. A rank that dies is
replaced by one, on the arena of its device; ranks that a change of width retires become some.
"""

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType
from typing import Any, NamedTuple

from controller.elastic.devices import Devices, LostDeviceError
from controller.local_engine.expert_map import ExpertMap
from controller.local_engine.ranks.exchange import exchange_size
from controller.local_engine.ranks.messages import (
    Aborted,
    Attach,
    Forget,
    Message,
    Prepare,
    Staged,
    Switch,
)
from controller.local_engine.ranks.standbys import Standbys
from placer.errors import PlacerError
from placer.memory.memfd import Memfd
from placer.memory.process import GoneError, Process

ATTEMPTS = 20  # to start ranks, or to make a step, before the engine gives up


class EngineError(PlacerError):
    """An engine that cannot serve."""


class RankLostError(Exception):
    """Ranks went away before they answered."""

    def __init__(self, ranks: list[int]) -> None:
        super().__init__(f"ranks {ranks} went away")
        self.ranks = ranks


class Member(NamedTuple):
    """A rank's process, and whose memory it has."""

    process: Process
    device: int


@dataclass(eq=False)
class _Prepared:
    """A group to come. is_ready: no rank was replaced since, which voids what the others made"""

    order: Sequence[int]
    new: Sequence[Member]
    served: ExpertMap
    is_ready: bool = True

    def members(self, now: Iterable[Member]) -> list[Member]:
        known = {one.device: one for one in (*now, *self.new)}
        return [known[device] for device in self.order]


class Ranks:
    """All of them. One thread asks those that step; after ``RankLostError`` comes ``repair``.

    served: the map that steps go by
    """

    def __init__(
        self, devices: Devices, order: Sequence[int], served: ExpertMap, standbys: Standbys
    ) -> None:
        """``order``: the ranks' devices."""
        self.restarts = 0
        self.served, self.staged = served, Staged(0, "")
        self._devices, self._standbys = devices, standbys
        self._memory, self._sizes = Memfd(), standbys.sizes
        self._members: list[Member] = []
        self._prepared: _Prepared | None = None
        try:
            for device in order:
                self._members.append(Member(self._standbys.take(), device))
            for one in self._members:
                self._attach(one)
            self._form()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._members)

    @property
    def order(self) -> list[int]:
        """The devices, by rank."""
        return [one.device for one in self._members]

    def pids(self) -> list[int]:
        return [one.process.pid for one in self._members]

    def ask(self, messages: Mapping[int, Message]) -> dict[int, Any]:
        """The answers of ranks. Raises RankLostError, once all that can have answered."""
        return self._ask(self._members, messages)

    def ask_all(self, message: Message) -> list[Any]:
        """The answers of all ranks, in their order."""
        answers = self.ask(dict.fromkeys(range(len(self._members)), message))
        return [answers[rank] for rank in range(len(self._members))]

    def stage(self, staged: Staged) -> None:
        """Tell all ranks of the change that is to come, also those that come later."""
        self.staged = staged
        self.ask_all(staged)

    def serve(self, served: ExpertMap) -> None:
        """Steps go by this map of as many ranks from now on."""
        self.served = served
        self.ask({rank: Prepare(served, rank) for rank in range(len(self._members))})
        self.ask_all(Switch())

    def supervise(self) -> None:
        """Raises RankLostError if one died unasked."""
        if lost := [at for at, one in enumerate(self._members) if not one.process.is_alive]:
            raise RankLostError(lost)

    def repair(self) -> None:
        """Replace the dead, on the memory that they had, and join them with the others."""
        if self._prepared is not None:
            self._prepared.is_ready = False
        for _ in range(ATTEMPTS):
            for rank, one in enumerate(self._members):
                if not one.process.is_alive:
                    one.process.end()
                    self.restarts += 1
                    with suppress(GoneError):
                        self._members[rank] = Member(self._standbys.take(), one.device)
                        self._attach(self._members[rank])
            with suppress(RankLostError):
                self._form()
                self.stage(self.staged)
                return self._standbys.fill_meanwhile()
        raise EngineError(f"ranks died {ATTEMPTS} times while starting: see the engine's stderr")

    # To another width. Standbys are not among those that step: they are asked by any one thread.

    def enlist(self, devices: Iterable[int]) -> list[Member]:
        """Standbys that are attached to these devices."""
        found: list[Member] = []
        try:
            found.extend(map(self._enlisted, devices))  # those before one that fails, too
        except BaseException:
            self.dismiss(found)
            raise
        return found

    def dismiss(self, members: Iterable[Member]) -> None:
        """Those that were enlisted for nothing."""
        for one in members:
            self._standbys.give(one.process)
        self._standbys.fill_meanwhile()

    def prepare(self, order: Sequence[int], new: Sequence[Member], served: ExpertMap) -> None:
        """Have the ranks of a group to come ready for it, while these go on. Between two steps."""
        self._prepared = _Prepared(order, new, served)
        self._form_of(self._prepared.members(self._members), served)

    def forget(self) -> None:
        """The group that was prepared will not come. Between two steps."""
        if self._prepared is not None:
            self._prepared = None
            self.ask_all(Forget())

    def leaving(self) -> list[Member]:
        """Whom the group that was prepared does not need."""
        assert self._prepared is not None
        return [one for one in self._members if one.device not in self._prepared.order]

    def switch(self) -> None:
        """The group that was prepared steps from now on. If one of it is lost then, ``repair``
        makes it whole."""
        assert self._prepared is not None
        to, self._prepared = self._prepared, None
        self._members, self.served = to.members(self._members), to.served
        if to.is_ready:
            self.ask_all(Switch())
        else:
            self._form()

    def go_on(self, order: Sequence[int], served: ExpertMap) -> None:
        """With those of these devices alone, and what was staged forgotten. Between two steps."""
        left = [one for one in self._members if one.device not in order]
        known = {one.device: one for one in self._members}
        new = self.enlist(device for device in order if device not in known)
        known |= {one.device: one for one in new}
        self._members = [known[device] for device in order]
        self._prepared, self.served, self.staged = None, served, Staged(0, "")
        for one in left:
            one.process.end()
        self.repair()

    def close(self) -> None:
        for one in self._members:
            one.process.socket.close()
        for one in self._members:
            one.process.end(grace_s=5.0)
        self._standbys.close()

    def _enlisted(self, device: int) -> Member:
        for _ in range(ATTEMPTS):
            with suppress(GoneError):  # the next
                one = Member(self._standbys.take(), device)
                try:
                    self._attach(one)
                except LostDeviceError:
                    self._standbys.give(one.process)
                    raise
                return one
        raise EngineError(f"standbys died {ATTEMPTS} times: see the engine's stderr")

    def _attach(self, one: Member) -> None:
        with self._devices.descriptor(one.device) as arena:
            one.process.ask(Attach(self._devices.layout), [arena])

    def _form(self) -> None:
        """New sockets and a new exchange for all: what was on its way through the old ones is
        void."""
        self._form_of(self._members, self.served)
        self.ask_all(Switch())

    def _form_of(self, members: list[Member], served: ExpertMap) -> None:
        with ExitStack() as open_:
            exchange = self._memory.create(exchange_size(self._memory, self._sizes, len(members)))
            open_.callback(os.close, exchange)
            links: dict[int, list[int]] = {rank: [exchange] for rank in range(len(members))}
            for pair in combinations(range(len(members)), 2):
                for rank, end in zip(pair, socket.socketpair(), strict=True):
                    links[rank].append(open_.enter_context(end).fileno())
            messages = {rank: Prepare(served, rank, len(members)) for rank in range(len(members))}
            self._ask(members, messages, links)

    def _ask(
        self,
        members: Sequence[Member],
        messages: Mapping[int, Message],
        descriptors: Mapping[int, Sequence[int]] = MappingProxyType({}),
    ) -> dict[int, Any]:
        lost, answers = set(), {}
        for rank, message in messages.items():
            try:
                members[rank].process.say(message, descriptors.get(rank, ()))
            except GoneError:
                lost.add(rank)
        failed: PlacerError | None = None
        for rank in messages.keys() - lost:
            try:
                answers[rank], _ = members[rank].process.hear()
            except GoneError:
                lost.add(rank)
            except PlacerError as error:  # the others' answers must not wait
                failed = error
        if failed is not None:
            raise failed
        if lost or any(isinstance(answer, Aborted) for answer in answers.values()):
            raise RankLostError(sorted(lost))
        return answers
