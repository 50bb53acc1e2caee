"""How old records are, whatever the wall clock has said since they were written."""

from bisect import bisect

from controller.ledger.records import Record
from placer.clock import Clock

STEP_S = 1.0  # by which a wall clock must have moved against the other to be noticed


class Ages:
    """A record says when it was written by the wall clock of then. So for each record of this
    process it is known how far that clock was ahead of the monotonic one; of those from before no
    more can be known than what today's wall clock makes of it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Records from a number on, and how far ahead the wall clock was when they were written.
        self._numbers, self._ahead = [0], [clock.now() - clock.monotonic()]

    def note(self, record: Record) -> None:
        """It was written just now."""
        ahead = record.at_s - self._clock.monotonic()
        if abs(ahead - self._ahead[-1]) > STEP_S:
            self._ahead.append(ahead)
            self._numbers.append(record.number)  # last: other threads ask meanwhile

    def of(self, record: Record) -> float:
        """Seconds, and none if it is of the future."""
        ahead = self._ahead[bisect(self._numbers, record.number) - 1]
        return max(self._clock.monotonic() + ahead - record.at_s, 0.0)

    def now(self) -> float:
        """Unix seconds, as if the wall clock had gone on as it went at the beginning."""
        return self._clock.monotonic() + self._ahead[0]
