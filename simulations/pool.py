"""A pool of ranks that serve requests by continuous batching, one synchronous step after another.

It is the aggregated form of kernels.py, in which each rank has requests of its own: for rules of
sizes that are tried by the hundred, since an Azure hour takes a tenth of the time or less here.
``python -m bench autoscale`` prints how far both are apart; on a single rank they are the same.

A step decodes a token of every running request, and prefills prompts in the order in which they
came, as far as its token budget goes; it takes

    step_s + (prefilled * prompt_token_s + decoded * output_token_s) / ranks

since all ranks of expert parallelism step together, and share the work evenly. A request starts
when its whole KV fits. Its first token comes with the last of its prompt. Ranks are counted as
allocated from when they are asked for until they are given up. A change of width lets the step
at which it happens take ``switch_s`` longer; running requests go on with their KV.

What is left out: that routers load ranks unevenly, preemption, prefix caches, and the network.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from controller.samples import GAP_BOUNDS, TTFT_BOUNDS, Histogram
from placer.arrays import FloatArray, IntArray
from placer.kernels import compiled
from simulations.arrivals import Arrivals
from simulations.state import Speeds

# Where the kernel keeps its numbers.
NOW, BUSY, RANKS, SWITCH_AT, NEXT_RANKS, PARTIAL, PREFILLED, DECODED = range(8)
COME, STARTED, RUNNING, KV, DONE, GENERATED_PROMPTS = range(6)
NEVER = np.inf
CONTEXT = 1000  # tokens, whose reading is in output_token_s


@dataclass(frozen=True, slots=True)
class Rank:
    """What one rank does: an H100 that serves a share of Qwen3-30B-A3B in BF16, by arithmetic.

    step_s:         reading half of 57 GB of weights takes 8.5 ms at 3.35 TB/s, launches and
                    all-to-all another 6.5
    prompt_token_s: 6.6 GFLOP at 13% of 989 TFLOP/s, as small chunks of a prompt through 128
                    experts have it
    output_token_s: 100 MB of KV, of CONTEXT tokens at 96 KB, at 1 TB/s
    token_budget:   of a step: the largest power of two whose prefill keeps to a TPOT of 55 ms
    kv_tokens:      30 GB of KV at 96 KB a token
    switch_s:       0.02 to 0.42 s were measured with hand-over between local processes
    """

    step_s: float = 0.015
    prompt_token_s: float = 50e-6
    output_token_s: float = 100e-6
    token_budget: int = 512
    kv_tokens: int = 310_000
    switch_s: float = 0.1

    @property
    def prompt_tokens_per_s(self) -> float:
        """That it prefills, of nothing but full steps."""
        return self.token_budget / (self.step_s + self.token_budget * self.prompt_token_s)

    @property
    def speeds(self) -> Speeds:
        """The same rank in kernels.py, where a token reads the context that it has."""
        context_s = (self.output_token_s - self.prompt_token_s) / CONTEXT
        return Speeds(
            self.step_s, 0.0, self.prompt_token_s, context_s,
            self.token_budget, self.kv_tokens, self.switch_s,
        )  # fmt: skip


@compiled
def _advance(
    until: float,
    rank: Any,
    at_s: Any,
    prompt: Any,
    output: Any,
    told: Any,
    counts: Any,
    running: Any,
    left: Any,
    first_s: Any,
    last_s: Any,
    bounds: Any,
    tokens: Any,
) -> None:
    """Steps that begin before ``until``. told, counts: NOW and so on, COME and so on; left: output
    tokens to come of each request; tokens: by the time that they took, first ones and others"""
    step_s, prompt_token_s, output_token_s, token_budget, kv_tokens, switch_s = rank
    requests = len(at_s)
    while told[NOW] < until:
        now = told[NOW]
        pause_s = 0.0
        if now >= told[SWITCH_AT]:
            told[RANKS] = told[NEXT_RANKS]
            told[SWITCH_AT] = np.inf
            pause_s = switch_s
        while counts[COME] < requests and at_s[counts[COME]] <= now:
            counts[COME] += 1
        if counts[RUNNING] == 0 and counts[STARTED] == counts[COME]:
            ahead = until
            if counts[COME] < requests:
                ahead = min(ahead, at_s[counts[COME]])
            told[NOW] = max(min(ahead, max(told[SWITCH_AT], now)), now)
            continue
        ranks = told[RANKS]
        decoded = counts[RUNNING]
        room = max(int(token_budget * ranks) - decoded, 0)
        prefilled = 0
        begun = decoded
        while room > 0 and counts[STARTED] < counts[COME]:
            one = counts[STARTED]
            needs = prompt[one] + output[one]
            is_new = told[PARTIAL] == 0
            if is_new and counts[KV] + needs > kv_tokens * ranks and begun > 0:
                break
            if is_new:
                counts[KV] += needs
            took = min(room, prompt[one] - int(told[PARTIAL]))
            room -= took
            prefilled += took
            told[PARTIAL] += took
            if told[PARTIAL] < prompt[one]:
                break
            told[PARTIAL] = 0
            counts[STARTED] += 1
            running[begun] = one
            begun += 1
        took_s = step_s + (prefilled * prompt_token_s + decoded * output_token_s) / ranks + pause_s
        end = now + took_s
        kept = 0
        for at in range(begun):
            one = running[at]
            if at >= decoded:
                first_s[one] = end
                tokens[0][np.searchsorted(bounds[0], end - at_s[one])] += 1
            else:
                tokens[1][np.searchsorted(bounds[1], end - last_s[one])] += 1
            last_s[one] = end
            left[one] -= 1
            if left[one] == 0:
                counts[DONE] += 1
                counts[GENERATED_PROMPTS] += prompt[one]
                counts[KV] -= prompt[one] + output[one]
            else:
                running[kept] = one
                kept += 1
        counts[RUNNING] = kept
        told[PREFILLED] += prefilled
        told[DECODED] += begun
        told[BUSY] += took_s
        told[NOW] = end


class PoolModel:
    """From ``ranks`` ranks on. Its time goes on when it is told to."""

    def __init__(self, arrivals: Arrivals, ranks: int, rank: Rank) -> None:
        self.arrivals, self.rank = arrivals, rank
        requests = len(arrivals)
        self.first_s: FloatArray = np.full(requests, NEVER)
        self.last_s: FloatArray = np.full(requests, NEVER)
        self.left: IntArray = arrivals.output.copy()
        self._bounds = np.array(TTFT_BOUNDS), np.array(GAP_BOUNDS)
        self._tokens = tuple(np.zeros(len(one) + 1) for one in self._bounds)
        self._told: FloatArray = np.zeros(8)
        self._told[[RANKS, NEXT_RANKS]], self._told[SWITCH_AT] = ranks, NEVER
        self._counts, self._running = np.zeros(6, np.int64), np.zeros(requests, np.int64)

    def advance(self, until: float) -> None:
        rank, come = self.rank, self.arrivals
        _advance(
            until,
            (rank.step_s, rank.prompt_token_s, rank.output_token_s, rank.token_budget,
             rank.kv_tokens, rank.switch_s),
            come.at_s, come.prompt, come.output, self._told, self._counts, self._running,
            self.left, self.first_s, self.last_s, self._bounds, self._tokens,
        )  # fmt: skip

    def resize(self, ranks: int) -> None:
        """At the next step."""
        self._told[[NEXT_RANKS, SWITCH_AT]] = ranks, self._told[NOW]

    @property
    def ranks(self) -> int:
        return int(self._told[NEXT_RANKS])

    @property
    def now_s(self) -> float:
        """The end of its last step, or as far as it was told to go."""
        return float(self._told[NOW])

    @property
    def busy_s(self) -> float:
        """In which steps ran."""
        return float(self._told[BUSY])

    @property
    def ttft(self) -> Histogram:
        """Seconds to first tokens."""
        return Histogram(TTFT_BOUNDS, tuple(self._tokens[0].tolist()))

    @property
    def gaps(self) -> Histogram:
        """Seconds between the other tokens."""
        return Histogram(GAP_BOUNDS, tuple(self._tokens[1].tolist()))

    @property
    def prompt_tokens(self) -> int:
        return int(self._told[PREFILLED])

    @property
    def output_tokens(self) -> int:
        return int(self._told[DECODED])

    @property
    def started(self) -> int:
        """Requests whose prompts are computed: those after them wait."""
        return int(self._counts[STARTED])

    @property
    def running(self) -> int:
        """Requests, one that is half prefilled among them."""
        return int(self._counts[RUNNING]) + (self._told[PARTIAL] > 0)

    @property
    def waiting(self) -> int:
        return int(self._counts[COME] - self._counts[STARTED]) - (self._told[PARTIAL] > 0)

    @property
    def kv_use(self) -> float:
        return float(self._counts[KV]) / (self.rank.kv_tokens * self._told[RANKS])

    @property
    def finished(self) -> int:
        return int(self._counts[DONE])

    @property
    def finished_prompt_tokens(self) -> int:
        return int(self._counts[GENERATED_PROMPTS])

    def attainment(self, ttft_s: float, tpot_s: float) -> float:
        return attainment(self.arrivals, self.first_s, self.last_s, ttft_s, tpot_s)


def attainment(
    come: Arrivals, first_s: FloatArray, last_s: FloatArray, ttft_s: float, tpot_s: float
) -> float:
    """Share of the requests whose first token came in ``ttft_s``, and the others in ``tpot_s``
    each, in the mean."""
    in_time = first_s - come.at_s <= ttft_s
    others = np.maximum(come.output - 1, 1)
    with np.errstate(invalid="ignore"):
        paced = (last_s - first_s) / others <= tpot_s
    return float((in_time & paced).mean())
