"""How long steps take, by phase, from when each begins and ends on the engine's thread.

A device works on after the thread has handed a step over. But while a request goes on, the next
step begins as soon as this one's tokens are there: so a step lasts until the next begins. The last
one before a pause lasts until its own end on the thread, which on a device is too early.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from placer.agent.recording import PHASES
from placer.pace import Pace


class _Step(NamedTuple):
    begun_s: float
    ended_s: float
    phase: str
    requests: Iterable[str]


class Stopwatch:
    """Sums up a worker's steps. It reads no clock; one is counted when the next has begun."""

    def __init__(self) -> None:
        self._last: _Step | None = None
        self._clear()

    def _clear(self) -> None:
        self._steps = dict.fromkeys(PHASES, 0)
        self._busy_s = dict.fromkeys(PHASES, 0.0)

    def begin(self, now_s: float, requests: Collection[str]) -> None:
        """A step begins, with these requests: the last one is over."""
        last, self._last = self._last, None
        if last is not None:
            goes_on = any(name in requests for name in last.requests)
            self.count(last.phase, (now_s if goes_on else last.ended_s) - last.begun_s)

    def end(self, begun_s: float, now_s: float, phase: str, requests: Iterable[str]) -> None:
        """It is handed over. phase: prefill, if a token of a prompt is in it"""
        self._last = _Step(begun_s, now_s, phase, requests)

    def count(self, phase: str, seconds: float) -> None:
        """A whole step."""
        self._steps[phase] += 1
        self._busy_s[phase] += seconds

    def take(self, window_s: float) -> dict[str, Pace]:
        """What was counted in so many seconds, since the last time."""
        if not window_s:
            return {}
        paces = {
            phase: Pace(steps, self._busy_s[phase], window_s)
            for phase, steps in self._steps.items()
        }
        self._clear()
        return paces
