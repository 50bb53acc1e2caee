"""The addresses of engines, and their ranks as a scheduler may choose them."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from controller.router.pool.probe import EndpointInfo
from controller.router.wire.server import Server

log = logging.getLogger("placer.front")


class EngineRank(NamedTuple):
    """A rank of an engine."""

    engine: str
    rank: int


class Listed(NamedTuple):
    """Who says that an address is there. ranks: of the engine, behind it; empty if nobody knows"""

    engine: str
    ranks: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Endpoint:
    """One address. info: None while nobody knows; is_open: whether it takes requests; own:
    requests of this front that are there; present: requests of everybody, by rank, as it said last
    """

    server: Server
    listed: Listed
    info: EndpointInfo | None = None
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
        if self.info is not None and len(self.info.ranks) == 1:  # whatever it calls them
            return max(sum(self.present.values()) - self.own[rank], 0.0)
        return max(self.present.get(rank, 0.0) - self.own[rank], 0.0)


class Backend(NamedTuple):
    """Where a rank is reached. line: of a request's head, that chooses it"""

    endpoint: Endpoint
    line: bytes


class Endpoints:
    """All addresses of a pool. backends: of ranks that take requests; ranks: of each engine, also
    those that take none; changed, heard: called when the backends are others, or their loads"""

    def __init__(self, changed: Callable[[], None], heard: Callable[[], None]) -> None:
        self.all: dict[str, Endpoint] = {}
        self.backends: dict[EngineRank, Backend] = {}
        self.ranks: dict[str, int] = {}
        self._changed, self._heard = changed, heard

    def add(self, endpoint: Endpoint) -> None:
        self.all[endpoint.url] = endpoint

    def remove(self, url: str) -> None:
        """What is on its way there still ends."""
        del self.all[url]
        self._backend()

    def open(self, endpoint: Endpoint, info: EndpointInfo) -> None:
        if info != endpoint.info and info.fault:
            log.warning("placer: %s", info.fault)
        endpoint.info, endpoint.is_open, endpoint.why = info, True, ""
        self._backend()

    def shut(self, endpoint: Endpoint, why: str) -> None:
        """It takes no requests until it was asked again."""
        if endpoint.is_open:
            log.warning("placer: %s: nothing is sent there until it answers again", why)
        endpoint.is_open, endpoint.why, endpoint.present = False, why, {}
        self._backend()

    def heard(self, endpoint: Endpoint, present: Mapping[int, float]) -> None:
        """How many requests its ranks have."""
        endpoint.present = present
        self._heard()

    def others(self) -> dict[tuple[str, int], float]:
        """Requests at each rank that this front did not send."""
        return {
            place: backend.endpoint.others(place.rank) for place, backend in self.backends.items()
        }

    def info(self) -> EndpointInfo | None:
        """What serves here, by the first that tells."""
        return next((one.info for one in self.all.values() if one.info), None)

    def _backend(self) -> None:
        self.backends, ranks = {}, dict[str, int]()
        for endpoint in self.all.values():
            if endpoint.info is None:
                continue
            for rank, line in zip(endpoint.info.ranks, endpoint.info.lines, strict=True):
                place = EngineRank(endpoint.listed.engine, rank)
                ranks[place.engine] = max(ranks.get(place.engine, 0), place.rank + 1)
                if endpoint.is_open:
                    self.backends[place] = Backend(endpoint, line)
        self.ranks = ranks
        self._changed()
