"""What a controller's tables tell of tokens, for the map that a pool's engines serve."""

import logging
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any, NamedTuple

from controller.router.scheduling.lookup import Lookup
from placer.client import Controller
from placer.clock import ThreadClock
from placer.cost.requests import Costs
from placer.errors import PlacerError, RoutingError
from placer.files.tables import read_tables
from placer.tables.made import BY_IDS
from placer.v1 import placement_pb2

BREATH_S = 5.0  # after a break
AGAIN_S = 60.0  # to a controller of before, which tells them once

log = logging.getLogger("placer.front")


class KnownTables(NamedTuple):
    """tables: of one map, whose digest is ``plan``; costs: what its seconds are"""

    tables: Lookup
    plan: str
    costs: Costs


NOTHING = KnownTables(Lookup.nothing(), "", Costs(0.0, 0.0, 0.0))


class TableWatch:
    """Watches a controller's tables, on a thread of its own, and keeps the newest. While none
    answers, what is known stays. controller: the one to ask now; vocabulary: that prompts are
    tokenized with, empty if it is the engines' own"""

    def __init__(
        self,
        controller: Callable[[], Controller],
        pool: str,
        clock: ThreadClock,
        vocabulary: str = "",
    ) -> None:
        self._controller, self._pool, self._clock = controller, pool, clock
        self._vocabulary = vocabulary
        self._news: deque[KnownTables] = deque(maxlen=1)  # of the thread, for whoever asks
        self._without = ""  # why there are none
        self._stopped = Event()
        self._thread = Thread(target=self._run, name="tables", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def newest(self) -> KnownTables | None:
        """What came since this was asked last; None: what is known stays."""
        return self._news.popleft() if self._news else None

    def close(self) -> None:
        """The thread ends with its stream."""
        self._stopped.set()

    def _run(self) -> None:
        pause_s = 0.0
        while not self._clock.wait(self._stopped, pause_s):
            try:
                self._watch()
                pause_s = AGAIN_S
            except (PlacerError, ValueError) as error:  # or a channel that was closed meanwhile
                self._tell(str(error))
                pause_s = BREATH_S

    def _watch(self) -> None:
        controller = self._controller()
        request = placement_pb2.TablesRequest(pool=self._pool, watch=True)
        parts: list[bytes] = []
        seconds: Any = None
        for answer in controller.read(controller.placement.Tables, request):
            if answer.reason:
                self._lose(answer.reason)
                continue
            parts.append(answer.part)
            if answer.HasField("seconds"):
                seconds = answer.seconds
            if answer.last:
                self._take(parts, seconds)
                parts, seconds = [], None
        if parts:
            self._take(parts, seconds)

    def _take(self, parts: list[bytes], seconds: Any) -> None:
        """Raises PlacerError for what is of no use to a scheduler."""
        if seconds is None:
            raise PlacerError(f"too little traffic of {self._pool} is known to weigh requests")
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            file.write(b"".join(parts))
            file.flush()
            found = read_tables(Path(file.name))
        try:
            found.origin.check(keyed_by=BY_IDS, vocabulary=self._vocabulary)
        except RoutingError as error:
            self._lose(str(error))
            return
        costs = Costs(seconds.local, seconds.prefill, seconds.read)
        self._news.append(KnownTables(Lookup.made(found), found.origin.plan, costs))
        self._without = ""

    def _lose(self, why: str) -> None:
        """There are none any more."""
        self._news.append(NOTHING)
        self._tell(why)

    def _tell(self, why: str) -> None:
        if not self._without and not self._stopped.is_set():
            log.warning("placer: no tables: %s", why)
        self._without = why
