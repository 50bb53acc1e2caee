"""What an engine's /metrics say at a moment, in vLLM's names: read, and written.

Names that vLLM gave up are read too. Series of several models or engines behind one address add up;
of KV use the largest counts. What is not there is 0.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from operator import mul
from types import MappingProxyType
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

from placer.errors import PlacerError


@dataclass(frozen=True, slots=True)
class Histogram:
    """bounds: upper ends of all buckets but the last, which has none; counts: in each"""

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = (0.0,)

    @property
    def total(self) -> float:
        return sum(self.counts)

    def within(self, bound: float) -> float:
        """Share of what was counted that is at most ``bound``; inside a bucket as if it were even,
        as Prometheus has it. 1 if nothing was counted."""
        total, low, found = self.total, 0.0, 0.0
        for high, count in zip(self.bounds, self.counts, strict=False):
            if high > bound:
                found += count * (bound - low) / (high - low)
                break
            found, low = found + count, high
        return found / total if total > 0 else 1.0

    @property
    def mean(self) -> float:
        """As if each bucket had its middle; of the last its lower end. 0 if nothing was counted."""
        lows = (0.0, *self.bounds)
        middles = [(low + high) / 2 for low, high in zip(lows, self.bounds, strict=False)]
        found = sum(map(mul, self.counts, (*middles, lows[-1])))
        return found / self.total if self.total > 0 else 0.0

    def since(self, before: "Histogram") -> "Histogram":
        """What came since; all of it if it was reset, or has other buckets now."""
        if self.bounds != before.bounds:
            return self
        grown = tuple(now - then for now, then in zip(self.counts, before.counts, strict=True))
        return self if min(grown) < 0 else Histogram(self.bounds, grown)

    def plus(self, other: "Histogram") -> "Histogram":
        if self.bounds != other.bounds:
            return other if other.total else self
        both = zip(self.counts, other.counts, strict=True)
        return Histogram(self.bounds, tuple(one + two for one, two in both))


@dataclass(frozen=True, slots=True)
class Sample:
    """What one engine's /metrics say.

    ttft, gaps: seconds to first tokens, and between tokens of a request
    running, waiting: requests now; kv_use: share of its KV room
    finished, finished_prompt_tokens: requests, and the tokens of their prompts
    prompt_tokens, output_tokens: computed
    """

    ttft: Histogram = Histogram()
    gaps: Histogram = Histogram()
    running: float = 0.0
    waiting: float = 0.0
    kv_use: float = 0.0
    finished: float = 0.0
    finished_prompt_tokens: float = 0.0
    prompt_tokens: float = 0.0
    output_tokens: float = 0.0

    @property
    def present(self) -> float:
        return self.running + self.waiting


# By the field of a sample, newest first.
HISTOGRAM_NAMES = {
    "ttft": ("vllm:time_to_first_token_seconds",),
    "gaps": ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
}
GAUGE_NAMES = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_use": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
}
COUNTER_NAMES = {
    "finished": ("vllm:request_success_total",),
    "finished_prompt_tokens": ("vllm:request_prompt_tokens_sum",),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "output_tokens": ("vllm:generation_tokens_total",),
}
MOST_BUCKETS = 1000
# vLLM's buckets of seconds to first tokens, and between tokens.
TTFT_BOUNDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
               10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
GAP_BOUNDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
              10.0, 20.0, 40.0, 80.0)  # fmt: skip


_PRESENT = re.compile(
    rb"^vllm:num_requests_(?:running|waiting)\{([^\n]*)\} (\d+(?:\.\d+)?)", re.MULTILINE
)
_RANK = re.compile(rb'(?:^|,) *engine="(\d{1,6})"')


class SampleError(PlacerError):
    """What an address answers is not an engine's metrics."""


def parse(text: str) -> Sample:
    """Raises SampleError for what is not Prometheus' text, or not an engine's."""
    sums: dict[str, float] = defaultdict(float)
    most: dict[str, float] = defaultdict(float)
    buckets: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    try:
        for family in text_string_to_metric_families(text):
            if not family.name.startswith("vllm:"):
                continue
            for one in family.samples:
                if not (isfinite(one.value) and one.value >= 0):
                    raise SampleError(f"{one.name} is {one.value}: is it vLLM that answers?")
                if one.name.endswith("_bucket"):
                    name = one.name.removesuffix("_bucket")
                    buckets[name][float(one.labels["le"])] += one.value
                sums[one.name] += one.value
                most[one.name] = max(most[one.name], one.value)
    except (ValueError, KeyError, IndexError) as error:
        raise SampleError(f"these are no metrics ({error}): name the engine's /metrics") from error
    if GAUGE_NAMES["running"][0] not in sums:
        raise SampleError(
            f"no {GAUGE_NAMES['running'][0]} among the metrics: is it vLLM's address?"
        )
    told: dict[str, Any] = {
        field: next((sums[name] for name in names if name in sums), 0.0)
        for field, names in (COUNTER_NAMES | GAUGE_NAMES).items()
    }
    told["kv_use"] = next((most[name] for name in GAUGE_NAMES["kv_use"] if name in most), 0.0)
    told |= {
        field: next((_histogram(buckets[name]) for name in names if name in buckets), Histogram())
        for field, names in HISTOGRAM_NAMES.items()
    }
    return Sample(**told)


def present_by_rank(text: bytes) -> dict[int, float]:
    """Requests that run or wait, by the engine's data-parallel rank, of all ranks that answer
    there; empty if nobody tells. In a hundredth of the time that ``parse`` takes."""
    found: dict[int, float] = defaultdict(float)
    for labels, value in _PRESENT.findall(text):
        if rank := _RANK.search(labels):
            found[int(rank[1])] += float(value)
    return dict(found)


def ranks_of(text: bytes) -> tuple[int, ...]:
    """The data-parallel ranks of an engine that answer there; empty if nobody tells."""
    return tuple(sorted(present_by_rank(text)))


def _histogram(buckets: dict[float, float]) -> Histogram:
    """Of counts up to each bound."""
    if len(buckets) > MOST_BUCKETS:
        raise SampleError(
            f"a histogram has {len(buckets)} buckets: at most {MOST_BUCKETS} are read"
        )
    bounds = sorted(buckets)
    upto = [buckets[bound] for bound in bounds]
    counts = [now - then for now, then in zip(upto, [0.0, *upto], strict=False)]
    if not bounds or bounds[-1] != inf or min(counts) < 0:
        raise SampleError("a histogram's buckets do not add up: is it vLLM that answers?")
    return Histogram(tuple(bounds[:-1]), tuple(counts))


def expose(sample: Sample, by_rank: Mapping[str, Sequence[float]] = MappingProxyType({})) -> str:
    """The text that vLLM would answer for it. by_rank: fields of which each rank tells its own"""
    registry = CollectorRegistry()
    registry.register(_Collector(sample, by_rank))
    return generate_latest(registry).decode()


class _Collector(Collector):
    def __init__(self, sample: Sample, by_rank: Mapping[str, Sequence[float]]) -> None:
        self.sample, self.by_rank = sample, by_rank

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        sample = self.sample
        for field, names in GAUGE_NAMES.items():
            labels = ["engine"] if field in self.by_rank else []
            gauge = GaugeMetricFamily(names[0], field, labels=labels)
            values = self.by_rank.get(field, [getattr(sample, field)])
            for rank, value in enumerate(values):
                gauge.add_metric([str(rank)] * len(labels), value)
            yield gauge
        for field in ("finished", "prompt_tokens", "output_tokens"):
            yield CounterMetricFamily(COUNTER_NAMES[field][0], field, getattr(sample, field))
        for field, names in HISTOGRAM_NAMES.items():
            yield _family(names[0], getattr(sample, field))
        prompts = Histogram(counts=(sample.finished,))
        yield _family("vllm:request_prompt_tokens", prompts, sample.finished_prompt_tokens)


def _family(name: str, histogram: Histogram, total: float = 0.0) -> HistogramMetricFamily:
    upto, buckets = 0.0, []
    for bound, count in zip((*histogram.bounds, inf), histogram.counts, strict=True):
        upto += count
        buckets.append(("+Inf" if bound == inf else repr(bound), upto))
    return HistogramMetricFamily(name, name, buckets, total)
