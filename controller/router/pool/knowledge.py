"""What a controller's tables tell of tokens, for the map that a pool's engines serve."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from controller.router.scheduling.lookup import Lookup
from placer.client import Controller
from placer.clock import Clock
from placer.cost.requests import Costs
from placer.errors import PlacerError
from placer.files.tables import read_tables
from placer.tables.made import BY_IDS
from placer.v1 import placement_pb2

AGAIN_S = 60.0  # as often as a controller makes them


class Known(NamedTuple):
    """tables: of one map, whose digest is ``plan``; costs: what its seconds are"""

    tables: Lookup
    plan: str
    costs: Costs


NOTHING = Known(Lookup.nothing(), "", Costs(0.0, 0.0, 0.0))


class Knowledge:
    """Fetched again when the map changes, and now and then."""

    def __init__(self, controller: Controller, pool: str, clock: Clock) -> None:
        self._controller, self._pool, self._clock = controller, pool, clock
        self._digests: set[str] = set()
        self._due_s = 0.0

    def newest(self, digests: Mapping[str, str]) -> Known | None:
        """None: what is known stays. digests: of the maps of the engines, by name. Raises
        PlacerError where there are no tables."""
        now_s, maps = self._clock.monotonic(), set(digests.values())
        if now_s < self._due_s and maps == self._digests:
            return None
        self._due_s, self._digests = now_s + AGAIN_S, maps
        request = placement_pb2.TablesRequest(pool=self._pool)
        parts, seconds = [], None
        for answer in self._controller.read(self._controller.placement.Tables, request):
            parts.append(answer.part)
            if answer.HasField("seconds"):
                seconds = answer.seconds
        if seconds is None:
            raise PlacerError(f"too little traffic of {self._pool} is known to weigh requests")
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            file.write(b"".join(parts))
            file.flush()
            found = read_tables(Path(file.name))
        found.origin.check(keyed_by=BY_IDS)
        costs = Costs(seconds.local, seconds.prefill, seconds.read)
        return Known(Lookup.made(found), found.origin.plan, costs)
