"""Requests that come: when, and with how many tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from placer.arrays import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Requests in the order in which they come.

    at_s:   [requests] seconds since the beginning
    prompt, output: [requests] tokens, 1 or more
    """

    at_s: FloatArray
    prompt: IntArray
    output: IntArray

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def seconds(self) -> float:
        return float(self.at_s[-1]) if len(self) else 0.0

    def between(self, begin_s: float, end_s: float) -> Self:
        """Those of [begin_s, end_s), seconds from its beginning."""
        first, last = np.searchsorted(self.at_s, [begin_s, end_s])
        part = slice(int(first), int(last))
        return type(self)(self.at_s[part] - begin_s, self.prompt[part], self.output[part])

    def times(self, factor: int) -> Self:
        """Each request so many times at its moment: bursts stay bursts, and grow."""
        again = np.repeat(np.arange(len(self)), factor)
        return type(self)(self.at_s[again], self.prompt[again], self.output[again])


def poisson(per_s: float, seconds: float, prompt: int, output: int, seed: int) -> Arrivals:
    """Requests of one size that come independently of each other."""
    rng = np.random.default_rng(seed)
    at_s = np.sort(rng.random(rng.poisson(per_s * seconds)) * seconds)
    sizes = np.full(len(at_s), prompt), np.full(len(at_s), output)
    return Arrivals(at_s, *sizes)


def diurnal(
    per_s: float,
    seconds: float,
    swing: float,
    bursts: float,
    prompt: int,
    output: int,
    longest: int,
    seed: int | Sequence[int],
) -> Arrivals:
    """A day's rise and fall, with bursts, of requests whose lengths are log-normal.

    per_s: in the mean; swing: of the rate around it, as a share, with its top at 15:00
    bursts: a day; each doubles the rate for ten minutes
    prompt, output: tokens in the mean; their logarithms deviate by 1
    longest: tokens of a prompt and its answer, beyond which prompts are cut
    """
    rng = np.random.default_rng(seed)
    moments = np.arange(0, seconds, 60.0)
    rate = per_s * (1 + swing * np.cos(2 * np.pi * (moments / 86_400 - 15 / 24)))
    for begin in rng.random(rng.poisson(bursts * seconds / 86_400)) * seconds:
        rate[(moments >= begin) & (moments < begin + 600)] *= 2
    counts = rng.poisson(rate * np.minimum(60.0, seconds - moments))
    at_s = np.sort(np.repeat(moments, counts) + rng.random(counts.sum()) * 60.0)
    at_s = at_s[at_s < seconds]

    def lengths(mean: int) -> IntArray:
        drawn = rng.lognormal(np.log(mean) - 0.5, 1.0, len(at_s))
        return np.clip(drawn, 1, 16 * mean).astype(np.int32)

    prompts, outputs = lengths(prompt), np.minimum(lengths(output), longest - 1)
    return Arrivals(at_s, np.minimum(prompts, longest - outputs), outputs)
