"""How old records are, whatever the wall clock has said since they were written."""

from bisect import bisect
from math import inf
from typing import Any

from controller.ledger.records import Record
from placer.clock import Clock

STEP_S = 1.0  # by which a wall clock must have moved against the other to be noticed


class Ages:
    """A record says when it was written by the wall clock of then. So for each record of this
    process it is known how far that clock was ahead of the monotonic one. Of those from before no
    more can be known than what the wall clock makes of it when this begins; none is younger."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._begun_s = clock, clock.monotonic()
        self._first = inf  # number of a record of this process
        # Records from a number on, and how far ahead the wall clock was when they were written.
        self._numbers, self._ahead = [0], [clock.now() - self._begun_s]

    def note(self, record: Record[Any]) -> None:
        """It was written just now."""
        self._first = min(self._first, record.number)
        ahead = record.at_s - self._clock.monotonic()
        if abs(ahead - self._ahead[-1]) > STEP_S:
            self._ahead.append(ahead)
            self._numbers.append(record.number)  # last: other threads ask meanwhile

    def of(self, record: Record[Any]) -> float:
        """Seconds."""
        written_s = record.at_s - self._ahead[bisect(self._numbers, record.number) - 1]
        if record.number < self._first:
            written_s = min(written_s, self._begun_s)
        return max(self._clock.monotonic() - written_s, 0.0)

    def now(self) -> float:
        """Unix seconds, as if the wall clock had gone on as it went at the beginning."""
        return self._clock.monotonic() + self._ahead[0]
