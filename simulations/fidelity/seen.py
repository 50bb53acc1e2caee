"""What was seen of an engine that served requests, or is predicted of one, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import ks_2samp

from placer.arrays import FloatArray, IntArray
from simulations.arrivals import Arrivals

# Shares by which a prediction may be off, or else by which two fresh engines differ.
GOALS = {"TPOT": 0.017, "latency": 0.022, "TTFT": 0.10}
LOADS, RATIO, SCALING = 0.02, 0.05, 0.15


class Steps(NamedTuple):
    """What an engine did, one after another.

    seconds: [steps]; tokens: [steps, ranks] of each rank's requests
    active:  [steps, layers, ranks] experts of a rank that got tokens, of anybody's
    waited_s: [steps, ranks] for other ranks
    begun: [steps, ranks] requests whose first token it brings
    """

    seconds: FloatArray
    tokens: IntArray
    active: FloatArray
    waited_s: FloatArray
    begun: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """first_s, last_s: [requests] when their first and last tokens came, from the beginning

    load: [layers, experts], rank_load: [layers, ranks] activations
    steps: None of what is predicted
    """

    arrivals: Arrivals
    first_s: FloatArray
    last_s: FloatArray
    load: FloatArray
    rank_load: FloatArray
    steps: Steps | None = None

    @property
    def seconds(self) -> Mapping[str, FloatArray]:
        """Of each request, by figure."""
        gaps = np.maximum(self.arrivals.output - 1, 1)
        return {
            "TPOT": ((self.last_s - self.first_s) / gaps)[self.arrivals.output > 1],
            "latency": self.last_s - self.arrivals.at_s,
            "TTFT": self.first_s - self.arrivals.at_s,
        }

    @property
    def tpot_s(self) -> float:
        return float(self.seconds["TPOT"].mean())

    @property
    def shares(self) -> FloatArray:
        """[layers, ranks] of a layer's activations."""
        found: FloatArray = self.rank_load / self.rank_load.sum(axis=1, keepdims=True)
        return found


def joined(parts: Sequence[Seen]) -> Seen:
    """Of one engine, or of several that are alike; each part has a beginning of its own."""
    asked = [one.arrivals for one in parts]
    arrivals = Arrivals(
        np.concatenate([one.at_s for one in asked]),
        np.concatenate([one.prompt for one in asked]),
        np.concatenate([one.output for one in asked]),
    )
    steps = [one.steps for one in parts if one.steps is not None]
    return Seen(
        arrivals,
        np.concatenate([one.first_s for one in parts]),
        np.concatenate([one.last_s for one in parts]),
        np.sum([one.load for one in parts], axis=0),
        np.sum([one.rank_load for one in parts], axis=0),
        Steps(*map(np.concatenate, zip(*steps, strict=True))) if steps else None,
    )


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure, predicted and measured. repeated: by what share two fresh engines differ; ks: the
    distance of both distributions, and of the two engines'"""

    what: str
    predicted: float
    measured: float
    repeated: float
    goal: float
    form: str
    ks: tuple[float, float] | None = None

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def is_within(self) -> bool:
        return abs(self.error) <= max(self.goal, self.repeated)


def compared(where: str, predicted: Seen, runs: Sequence[Seen]) -> Iterator[Compared]:
    """Means over requests, and loads of ranks. runs: of two fresh engines or more, whose mean is
    what is measured"""
    for what, ours in predicted.seconds.items():
        theirs = [one.seconds[what] for one in runs]
        means = [float(of.mean()) for of in theirs]
        ks = (_distance(ours, theirs[0]), _distance(theirs[1], theirs[0]))
        measured, form = float(np.mean(means)), "{:.1f} ms"
        repeated = (max(means) - min(means)) / measured
        told = float(ours.mean()) * 1e3, measured * 1e3
        yield Compared(f"{where}: {what}", *told, repeated, GOALS[what], form, ks)
    ranks = runs[0].shares.shape[1]
    if ranks > 1:
        # Of the busiest rank of each layer, in times of the mean.
        load, *loads = (float(one.shares.max(axis=1).mean()) * ranks for one in (predicted, *runs))
        measured = float(np.mean(loads))
        repeated = (max(loads) - min(loads)) / measured
        what = f"{where}: busiest rank's load"
        yield Compared(what, load, measured, repeated, LOADS, "{:.3f}x")


def ratio(
    what: str, predicted: tuple[Seen, Seen], runs: tuple[Sequence[Seen], Sequence[Seen]]
) -> Compared:
    """Of the steps of two placements, by what tokens took."""
    ours = predicted[0].tpot_s / predicted[1].tpot_s
    theirs = [one.tpot_s / other.tpot_s for one, other in zip(*runs, strict=True)]
    measured = float(np.mean(theirs))
    repeated = (max(theirs) - min(theirs)) / measured
    return Compared(what, ours, measured, repeated, RATIO, "{:.3f}x")


def _distance(one: FloatArray, other: FloatArray) -> float:
    """Kolmogorov and Smirnov's."""
    return float(ks_2samp(one, other, method="asymp").statistic)
