"""Windowed signals of a pool: what its engines' counters say, added up and differenced.

Counters only grow, until an engine starts anew or changes its width: vLLM's then begin at 0 again.
What is lower than it was has been reset, and all of it came since. An engine that was not known
counts from its first reading on. So the pool's sums never fall, and rates are differences of them.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from controller.samples import Histogram, Sample

MOST_READINGS = 3600  # that are kept of a pool
LEAST_BUSY = 0.25  # that a rank is taken for
NEWEST = 0.1  # weight of the newest full speed in their mean


@dataclass(frozen=True, slots=True)
class Reading:
    """A sample of all engines of a pool, whose counters are sums since the beginning.

    at_s: by the monotonic clock; ranks: that served; arrived: requests
    """

    at_s: float
    ranks: int
    arrived: float = 0.0
    sums: Sample = field(default_factory=Sample)


COUNTERS = ("finished", "finished_prompt_tokens", "prompt_tokens", "output_tokens")
HISTOGRAMS = ("ttft", "gaps")


@dataclass(frozen=True, slots=True)
class Signals:
    """readings: oldest first, one at least"""

    readings: tuple[Reading, ...]

    @property
    def now(self) -> Reading:
        return self.readings[-1]

    def before(self, seconds: float) -> Reading:
        """The oldest reading of the last so many seconds."""
        begin_s = self.now.at_s - seconds - 1e-6
        for reading in reversed(self.readings):
            if reading.at_s < begin_s:
                break
            found = reading
        return found

    def first_tokens(self, seconds: float) -> Histogram:
        return self.now.sums.ttft.since(self.before(seconds).sums.ttft)

    def gaps(self, seconds: float) -> Histogram:
        return self.now.sums.gaps.since(self.before(seconds).sums.gaps)

    def attainment(self, ttft_s: float, tpot_s: float, seconds: float) -> float:
        """The smaller share of what keeps to its objective, of first tokens and of the others."""
        first, others = self.first_tokens(seconds), self.gaps(seconds)
        return min(first.within(ttft_s), others.within(tpot_s))

    @property
    def prompt_length(self) -> float:
        """Tokens, mean of the requests that finished while it was read; 0 if there were none."""
        first, now = self.readings[0].sums, self.now.sums
        finished = now.finished - first.finished
        tokens = now.finished_prompt_tokens - first.finished_prompt_tokens
        return tokens / finished if finished > 0 else 0.0

    def arrivals(self, seconds: float, span_s: float) -> list[float]:
        """Requests a second, of every span of about ``span_s`` that ends in these seconds."""
        found, begin_s, first = [], self.now.at_s - seconds - 1e-6, 0
        readings = self.readings
        for at, reading in enumerate(readings):
            while readings[first].at_s < reading.at_s - span_s - 1e-6:
                first += 1
            begin = readings[first]
            if reading.at_s >= begin_s and at > first:
                took_s = reading.at_s - begin.at_s
                found.append((reading.arrived - begin.arrived) / max(took_s, span_s))
        return found

    def mean_present(self, seconds: float) -> float:
        """Requests that ran or waited."""
        begin_s = self.now.at_s - seconds - 1e-6
        found = [one.sums.present for one in self.readings if one.at_s >= begin_s]
        return sum(found) / len(found)


class SignalWindow:
    """A pool's readings. window_s: how far back they are kept; tpot_s: between tokens, at most

    full_rate: prompt tokens a second that a rank computes at full speed, as far as it has shown;
        less as soon as it computes less while that is all it can

    Ranks that were never busy have not shown it. How busy engines are follows from what they say:
    by Little's law, each has so many prompts at work at a time as come a second, times the seconds
    to their first token; and steps as long as ``tpot_s`` cannot carry more tokens. What a rank
    computes while it is half busy is taken for half of what it can, but nothing for less than
    LEAST_BUSY: what was not seen is believed so far only, and looked at again from there.
    """

    def __init__(self, window_s: float, tpot_s: float) -> None:
        self.window_s, self.tpot_s, self.full_rate = window_s, tpot_s, 0.0
        self._readings: deque[Reading] = deque(maxlen=MOST_READINGS)
        self._samples: dict[str, Sample] = {}

    def add(self, at_s: float, ranks: int, samples: Mapping[str, Sample]) -> None:
        """What was read of each engine. One that is not in it did not answer: its counters will
        say more next time, and what was there is there still."""
        last = self._readings[-1] if self._readings else Reading(at_s, ranks)
        sums, arrived = last.sums, last.arrived
        for engine, now in samples.items():
            then = self._samples.get(engine)
            if then is not None:
                grown = _since(now, then)
                sums = _plus(sums, grown)
                arrived += max(grown.finished + now.present - then.present, 0.0)
            self._samples[engine] = now
        here = self._samples.values()
        sums = replace(
            sums,
            running=sum(one.running for one in here),
            waiting=sum(one.waiting for one in here),
            kv_use=max((one.kv_use for one in here), default=0.0),
        )
        now_ = Reading(at_s, ranks, arrived, sums)
        self._readings.append(now_)
        while self._readings[0].at_s < at_s - self.window_s - 1e-6:
            self._readings.popleft()
        self._learn(last, now_)

    def forget(self, engines: Mapping[str, object]) -> None:
        """All but these, which are there."""
        for engine in self._samples.keys() - engines.keys():
            del self._samples[engine]

    @property
    def signals(self) -> Signals | None:
        """None before the first reading."""
        return Signals(tuple(self._readings)) if self._readings else None

    def _learn(self, then: Reading, now: Reading) -> None:
        took_s = now.at_s - then.at_s
        if took_s <= 0 or then.ranks != now.ranks:
            return
        first = now.sums.ttft.since(then.sums.ttft)
        prompts = first.total * first.mean / took_s / len(self._samples)
        tokens = now.sums.gaps.since(then.sums.gaps).mean / self.tpot_s
        rate = (now.sums.prompt_tokens - then.sums.prompt_tokens) / took_s / now.ranks
        busy = max(prompts, tokens, LEAST_BUSY)
        if (shown := rate / min(busy, 1.0)) > self.full_rate:
            self.full_rate = shown
        elif tokens >= 1 or self._have_queues(then, now, first.total / took_s):
            self.full_rate += NEWEST * (rate - self.full_rate)

    def _have_queues(self, then: Reading, now: Reading, begun_per_s: float) -> bool:
        """Whether requests wait for longer than the step that runs may take: of those that come
        while it does, wide pools always have some."""
        return min(then.sums.waiting, now.sums.waiting) > begun_per_s * self.tpot_s


def _since(now: Sample, then: Sample) -> Sample:
    """Counters alone."""
    counts = {}
    for name in COUNTERS:
        value, before = getattr(now, name), getattr(then, name)
        counts[name] = value - before if value >= before else value
    found = {name: getattr(now, name).since(getattr(then, name)) for name in HISTOGRAMS}
    return Sample(**found, **counts)


def _plus(sums: Sample, grown: Sample) -> Sample:
    counts = {name: getattr(sums, name) + getattr(grown, name) for name in COUNTERS}
    found = {name: getattr(sums, name).plus(getattr(grown, name)) for name in HISTOGRAMS}
    return Sample(**found, **counts)
