"""How long tokens took, and how many there were: what an engine's metrics are made of."""

from bisect import bisect_left

from controller.samples import GAP_BOUNDS, TTFT_BOUNDS, Histogram, Sample


class Meter:
    """How long an engine's tokens took, since it began."""

    def __init__(self) -> None:
        self._ttft = [0.0] * (len(TTFT_BOUNDS) + 1)
        self._gaps = [0.0] * (len(GAP_BOUNDS) + 1)
        self._finished = self._finished_prompt_tokens = 0
        self._prompt_tokens = self._output_tokens = 0

    def prefill(self, tokens: int) -> None:
        self._prompt_tokens += tokens

    def token(self, is_first: bool, took_s: float) -> None:
        """took_s: since the request came, or since its last token"""
        self._output_tokens += 1
        if is_first:
            self._ttft[bisect_left(TTFT_BOUNDS, took_s)] += 1
        else:
            self._gaps[bisect_left(GAP_BOUNDS, took_s)] += 1

    def finish(self, prompt_tokens: int) -> None:
        self._finished += 1
        self._finished_prompt_tokens += prompt_tokens

    def sample(self, running: int, waiting: int, kv_use: float) -> Sample:
        return Sample(
            ttft=Histogram(TTFT_BOUNDS, tuple(self._ttft)),
            gaps=Histogram(GAP_BOUNDS, tuple(self._gaps)),
            running=running,
            waiting=waiting,
            kv_use=kv_use,
            finished=self._finished,
            finished_prompt_tokens=self._finished_prompt_tokens,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
        )
