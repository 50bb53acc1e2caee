"""Recording for a tenth of the time: in between nothing is set, and fused paths run."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from placer.agent.vllm.experts import Capture, ExpertLayer

OPEN_S, EVERY_S = 1.0, 10.0


class Shutter:
    """Opens for some steps. Closed while graphs are captured, it sees no step that replays one."""

    def __init__(self, layers: Sequence[ExpertLayer], captures: Sequence[Capture]) -> None:
        self._layers, self._captures = layers, captures
        self._seen: set[int] = set()
        self._is_open = False
        self._turn_s = 0.0  # of the next opening or closing

    def after_step(self, now_s: float) -> bool:
        """Whether the step that ended was seen, in every layer. The next may see it otherwise."""
        was_seen = self._is_open and len(self._seen) == len(self._layers)
        self._seen.clear()
        if now_s >= self._turn_s:
            self._is_open = not self._is_open
            self._turn_s = now_s + (OPEN_S if self._is_open else EVERY_S - OPEN_S)
            for at, layer in enumerate(self._layers):
                layer.bind(partial(self._capture, at) if self._is_open else None)
        return was_seen

    def _capture(self, at: int, expert_ids: Any) -> None:
        self._seen.add(at)
        self._captures[at](expert_ids)
