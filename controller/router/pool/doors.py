"""The addresses of engines, and their ranks as a scheduler may choose them."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from controller.router.pool.standing import Standing
from controller.router.wire.server import Server

log = logging.getLogger("placer.front")


class Place(NamedTuple):
    """A rank of an engine."""

    engine: str
    rank: int


class Named(NamedTuple):
    """Who says that an address is there. ranks: of the engine, behind it; empty if nobody knows"""

    engine: str
    ranks: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Door:
    """One address. standing: None while nobody knows; is_open: whether it takes requests; own:
    requests of this front that are there; present: requests of everybody, by rank, as it said last
    """

    server: Server
    named: Named
    standing: Standing | None = None
    is_open: bool = False
    present: Mapping[int, float] = field(default_factory=dict)
    own: Counter[int] = field(default_factory=Counter)
    served: int = 0  # requests, so far
    why: str = "was not asked yet"

    @property
    def url(self) -> str:
        return self.server.address.url

    def others(self, rank: int) -> float:
        """Requests that this front did not send."""
        if self.standing is not None and len(self.standing.ranks) == 1:  # whatever it calls them
            return max(sum(self.present.values()) - self.own[rank], 0.0)
        return max(self.present.get(rank, 0.0) - self.own[rank], 0.0)


class Seat(NamedTuple):
    """Where a rank is reached. line: of a request's head, that chooses it"""

    door: Door
    line: bytes


class Doors:
    """All addresses of a pool. seats: of ranks that take requests; ranks: of each engine, also
    those that take none; changed, heard: called when the seats are others, or their loads"""

    def __init__(self, changed: Callable[[], None], heard: Callable[[], None]) -> None:
        self.all: dict[str, Door] = {}
        self.seats: dict[Place, Seat] = {}
        self.ranks: dict[str, int] = {}
        self._changed, self._heard = changed, heard

    def add(self, door: Door) -> None:
        self.all[door.url] = door

    def remove(self, url: str) -> None:
        """What is on its way there still ends."""
        del self.all[url]
        self._seat()

    def open(self, door: Door, standing: Standing) -> None:
        if standing != door.standing and standing.fault:
            log.warning("placer: %s", standing.fault)
        door.standing, door.is_open, door.why = standing, True, ""
        self._seat()

    def shut(self, door: Door, why: str) -> None:
        """It takes no requests until it was asked again."""
        if door.is_open:
            log.warning("placer: %s: nothing is sent there until it answers again", why)
        door.is_open, door.why, door.present = False, why, {}
        self._seat()

    def heard(self, door: Door, present: Mapping[int, float]) -> None:
        """How many requests its ranks have."""
        door.present = present
        self._heard()

    def others(self) -> dict[tuple[str, int], float]:
        """Requests at each rank that this front did not send."""
        return {place: seat.door.others(place.rank) for place, seat in self.seats.items()}

    def standing(self) -> Standing | None:
        """What serves here, by the first that tells."""
        return next((one.standing for one in self.all.values() if one.standing), None)

    def _seat(self) -> None:
        self.seats, ranks = {}, dict[str, int]()
        for door in self.all.values():
            if door.standing is None:
                continue
            for rank, line in zip(door.standing.ranks, door.standing.lines, strict=True):
                place = Place(door.named.engine, rank)
                ranks[place.engine] = max(ranks.get(place.engine, 0), place.rank + 1)
                if door.is_open:
                    self.seats[place] = Seat(door, line)
        self.ranks = ranks
        self._changed()
