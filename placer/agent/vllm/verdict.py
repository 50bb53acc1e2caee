"""Whether all ranks of a group run agents that understand each other and serve one shape.

Ranks of which some vote and others do not wait for each other for ever, and what each reads by
itself differs by a moment: so one verdict is written for all, into the store that the group was
made with. vLLM helps with a barrier: before it asks for a map it adds up all ranks' loads, so
whoever is asked knows that all others have entered this rearrangement.

1. A rank that finds itself in a new group, or with another shape, announces itself, under a name
   that nobody had before.
2. Entering a rearrangement, and seeing an announcement of every rank, all alike, it signs these. A
   signature that an earlier group left in a store that still has its keys is under others.
3. Asked for a map, the first rank writes whether all have signed, and the others read it: once for
   each rearrangement, until it was "yes".

A rank without an agent announces nothing, one of another version another creed: nobody signs.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Protocol

from placer.names import few, ranges
from placer.worker import Worker

AGREEMENT = 1  # goes up when agents would no longer understand each other's votes


class Store(Protocol):
    """PyTorch's. Nothing here waits for another rank."""

    def set(self, key: str, value: str) -> Any: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def multi_get(self, keys: list[str]) -> list[bytes]: ...
    def compare_set(self, key: str, expected: str, desired: str) -> bytes: ...


class Verdict:
    """What a group of ``size`` ranks and one shape says, on one rank. ``stands`` once it was "yes".
    name: that nobody had before"""

    def __init__(self, store: Store, rank: int, size: int, worker: Worker, name: str) -> None:
        self.stands = False
        self.missing = ""
        self._store, self._rank, self._size = store, rank, size
        self._creed = {
            "agreement": AGREEMENT,
            "layers": worker.layers,
            "experts": worker.experts,
            "slots": worker.slots,
            "ranks": size,
        }
        announced = json.dumps({"name": name, "creed": self._creed})
        store.set(f"placer/{size}/{rank}", announced)

    def look(self) -> None:
        """See who is missing."""
        self.missing = self._strangers(self._announced())

    def enter(self) -> None:
        """Before a rearrangement's first collective."""
        announced = [] if self.stands else self._announced()
        if announced and not self._strangers(announced):
            self._store.set(f"placer/{_name(announced)}/{self._rank}", "signed")

    def reached(self, turn: int) -> bool:
        """After it, when a map is asked for: the same on all ranks. turn: the number of this
        rearrangement in the group"""
        if self.stands:
            return True
        announced = self._announced()
        self.missing = self._strangers(announced)
        if not self.missing:
            group = f"placer/{_name(announced)}"
            signed = self._store.check([f"{group}/{rank}" for rank in range(self._size)])
            answer = "yes" if signed else "no"
            self.stands = self._store.compare_set(f"{group}/verdict/{turn}", "", answer) == b"yes"
        return self.stands

    def _announced(self) -> list[bytes]:
        """Each rank's announcement; empty where there is none."""
        keys = [f"placer/{self._size}/{rank}" for rank in range(self._size)]
        if self._store.check(keys):
            return self._store.multi_get(keys)
        return [self._store.get(key) if self._store.check([key]) else b"" for key in keys]

    def _strangers(self, announced: Sequence[bytes]) -> str:
        """Who cannot agree, and what to do; empty if all can."""
        absent: list[int] = []
        foreign: list[int] = []
        others: list[str] = []
        for rank, text in enumerate(announced):
            creed = _creed(text)
            if not text:
                absent.append(rank)
            elif creed.get("agreement") != AGREEMENT:
                foreign.append(rank)
            elif creed != self._creed:
                other = next(key for key, mine in self._creed.items() if creed.get(key) != mine)
                others.append(f"rank {rank} has {creed.get(other)} {other}")
        said = []
        if absent:
            said.append(f"no agent on rank {ranges(absent)}: set PLACER_AGENT there, too")
        if foreign:
            where = f"on rank {ranges(foreign)}"
            said.append(f"another version's agent {where}: install the same placer there")
        if others:
            own = ", ".join(f"{number} {what}" for what, number in self._creed.items())
            said.append(f"{few(others)}, and rank {self._rank} has {own}: serve one model on all")
        return "; ".join(said)


def _name(announced: Sequence[bytes]) -> str:
    return sha256(b"\n".join(announced)).hexdigest()[:16]


def _creed(text: bytes) -> dict[str, int]:
    """What an announcement says; nothing that is understood, if it is of another version."""
    try:
        creed = json.loads(text)["creed"]
    except (ValueError, LookupError, TypeError):
        return {}
    return creed if isinstance(creed, dict) else {}
