"""Requests that come: when, and with how many tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from placer.arrays import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Prefixes:
    """What prompts begin with, block by block: whose first blocks are the same, their first tokens
    are.

    block_tokens: of a block
    blocks: of all requests, laid end to end; a number that is the same where all before it is
    begins: [requests + 1] where each request's are
    """

    block_tokens: int
    blocks: IntArray
    begins: IntArray

    def take(self, requests: IntArray) -> Self:
        """Those of these requests."""
        counts = np.diff(self.begins)[requests]
        begins = np.concatenate([[0], np.cumsum(counts)])
        at = np.arange(begins[-1]) + np.repeat(self.begins[requests] - begins[:-1], counts)
        return type(self)(self.block_tokens, self.blocks[at], begins)

    def of(self, request: int) -> tuple[int, ...]:
        return tuple(self.blocks[self.begins[request] : self.begins[request + 1]].tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Requests in the order in which they come.

    at_s:   [requests] seconds since the beginning
    prompt, output: [requests] tokens, 1 or more
    prefixes: None where nobody knows them
    """

    at_s: FloatArray
    prompt: IntArray
    output: IntArray
    prefixes: Prefixes | None = None

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def seconds(self) -> float:
        return float(self.at_s[-1]) if len(self) else 0.0

    def between(self, begin_s: float, end_s: float) -> Self:
        """Those of [begin_s, end_s), seconds from its beginning."""
        first, last = np.searchsorted(self.at_s, [begin_s, end_s])
        prefixes = None if self.prefixes is None else self.prefixes.take(np.arange(first, last))
        here = slice(first, last)  # of tens of millions, copies would be hundreds of MB
        return type(self)(self.at_s[here] - begin_s, self.prompt[here], self.output[here], prefixes)

    def times(self, factor: int) -> Self:
        """Each request so many times at its moment: bursts stay bursts, and grow."""
        which = np.repeat(np.arange(len(self)), factor)
        prefixes = None if self.prefixes is None else self.prefixes.take(which)
        return type(self)(self.at_s[which], self.prompt[which], self.output[which], prefixes)


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
    lasts = np.minimum(60.0, seconds - moments)
    counts = rng.poisson(rate * lasts)
    at_s = np.sort(np.repeat(moments, counts) + rng.random(counts.sum()) * np.repeat(lasts, counts))

    def lengths(mean: int) -> IntArray:
        drawn = rng.lognormal(np.log(mean) - 0.5, 1.0, len(at_s))
        return np.clip(drawn, 1, 16 * mean).astype(np.int32)

    prompts, outputs = lengths(prompt), np.minimum(lengths(output), longest - 1)
    return Arrivals(at_s, np.minimum(prompts, longest - outputs), outputs)


def with_prefixes(
    arrivals: Arrivals,
    count: int,
    tokens: int,
    share: float,
    zipf: float,
    longest: int,
    seed: int | Sequence[int],
) -> Arrivals:
    """Prompts of which some begin with one of a few prefixes, and are longer by it.

    count:  of prefixes; the n-th is n^-zipf times as popular as the first
    tokens: of each; share: of the requests that begin with one
    longest: tokens of a prompt and its answer, beyond which prompts are cut
    """
    rng = np.random.default_rng(seed)
    weights = np.arange(1.0, count + 1) ** -zipf
    which = rng.choice(count, len(arrivals), p=weights / weights.sum())
    begins_so = rng.random(len(arrivals)) < share
    room = longest - arrivals.output
    prompt = np.minimum(arrivals.prompt + begins_so * tokens, room).astype(arrivals.prompt.dtype)
    begins_so &= prompt > tokens
    begins = np.concatenate([[0], np.cumsum(begins_so)])
    prefixes = Prefixes(tokens, which[begins_so].astype(np.int64), begins)
    return Arrivals(arrivals.at_s, prompt, arrivals.output, prefixes)
