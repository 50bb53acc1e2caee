"""Is a model with this traffic worth pre-scheduling, prefetching or caching of experts?

Each is judged in seconds of a step's MoE layers, by the score's cost model, on one half of the
sequences with what was fitted on the other; again and again, with other halves. Halves of one
recording overlap, so that the standard error of their mean is s sqrt(1/n + 1), for halves as large
as each other (Nadeau and Bengio, Inference for the Generalization Error, 2003). Advised is what
exceeds what chance alone would do with probability ``CHANCE``, and is worth anybody's while.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from placer.chance import quantile
from placer.cost import memory
from placer.errors import PlacementError
from placer.model import ModelShape
from placer.objective import STEP_TOKENS_PER_GPU, Objective
from placer.plan import Infeasible, Solution
from placer.planner import solve
from placer.prediction.offloading import offloaded
from placer.problem import Problem
from placer.profile import of_trace
from placer.scores import held_out
from placer.topology import Topology
from placer.trace import Trace, concatenate

SPLITS = 8
CHANCE = 0.01
WORTH = 0.01  # of the MoE layers' time, below which nobody should bother
ROOMY = 2**50  # bytes of a GPU where only the traffic is asked about
Verdict = Literal["worth_it", "not_worth_it", "not_known"]


@dataclass(frozen=True, slots=True)
class Halves:
    """Seconds a step in one split: of the MoE layers as they are, and what each way saves."""

    step_s: float
    scheduled_s: float
    prefetched_s: float
    cached_s: float


@dataclass(frozen=True, slots=True)
class Saving:
    """Seconds a step that a way saves, mean of the splits, and their standard error.

    share:       of the step
    elsewhere_s: on traffic of another kind than it was fitted on; None if none was given
    """

    way: str
    saved_s: float
    error_s: float
    share: float
    verdict: Verdict
    reason: str
    elsewhere_s: float | None = None


@dataclass(frozen=True, slots=True)
class Advice:
    """What to do, of all ``savings`` the largest that is worth it, or "neither"."""

    best: str
    step_s: float
    savings: tuple[Saving, ...]
    notes: tuple[str, ...]


def advise(
    model: ModelShape,
    topology: Topology,
    traces: Sequence[Trace],
    seed: int = 0,
    watched: Callable[[], None] = lambda: None,
) -> Advice:
    """
    traces:  of one model, one of each kind of traffic
    watched: is called as often as something was judged: SPLITS, and for each kind of several

    Raises RoutingError for a trace of one sequence.
    """
    world = _World(model, topology, STEP_TOKENS_PER_GPU[concatenate(traces).phase])
    whole, halves, elsewhere = concatenate(traces), [], []
    for split in range(SPLITS):
        halves.append(world.judge(*whole.split(0.5, seed + split)))
        watched()
    for at, trace in enumerate(traces if len(traces) > 1 else ()):
        others = concatenate([other for one, other in enumerate(traces) if one != at])
        elsewhere.append(world.judge(others, trace))
        watched()
    step_s = float(np.mean([half.step_s for half in halves]))
    savings = tuple(
        _saving(world, whole, way, name, halves, elsewhere, step_s)
        for way, name in (
            ("pre-scheduling", "scheduled_s"),
            ("prefetching", "prefetched_s"),
            ("expert caching", "cached_s"),
        )
    )
    worth = [saving for saving in savings if saving.verdict == "worth_it"]
    best = max(worth, key=lambda saving: saving.saved_s).way if worth else "neither"
    return Advice(best, step_s, savings, tuple(_notes(whole, len(traces))))


@dataclass(frozen=True, slots=True)
class _World:
    """Where it is asked about."""

    model: ModelShape
    topology: Topology
    tokens_per_gpu: int

    @property
    def objective(self) -> Objective:
        """Tokens that travel: where every rank gets all of them, nobody's home matters."""
        return Objective(dispatch="dedup", tokens_per_gpu=self.tokens_per_gpu)

    @property
    def room(self) -> int:
        """Experts of a layer that each GPU's memory holds."""
        fitting = memory.experts_that_fit(self.model, self.topology, self.objective)
        return fitting // self.model.layers

    @property
    def fits(self) -> bool:
        return self.room * self.topology.gpus >= self.model.experts

    def judge(self, fit: Trace, judged: Trace) -> Halves:
        gpus, experts = self.topology.gpus, self.model.experts
        gpu = replace(self.topology.gpu, hbm_bytes=max(self.topology.gpu.hbm_bytes, ROOMY))
        plain = Problem(
            model=self.model,
            topology=replace(self.topology, gpu=gpu),
            profile=of_trace(fit),
            slots=experts + -experts % gpus,
            objective=self.objective,
            trace=fit,
        )
        together = replace(plain, profile=of_trace(fit, clustered=True))
        before, after = _solved(plain), _solved(together)
        scores = held_out(plain, before.placement, after, fit, judged)
        resident_s, scheduled_s = scores.before.step_s, scores.before.step_s - scores.after.step_s
        if self.fits:
            return Halves(resident_s, scheduled_s, 0.0, 0.0)
        loads = offloaded(
            self.model,
            before.placement,
            fit,
            judged,
            room=self.room,
            step_tokens=self.tokens_per_gpu * gpus,
            layer_s=resident_s / self.model.layers,
        )
        return Halves(
            resident_s + loads.blind_s,
            scheduled_s,
            loads.blind_s - loads.prefetched_s,
            loads.blind_s - loads.cached_s,
        )


def _solved(problem: Problem) -> Solution:
    solution = solve(problem, "joint")
    if isinstance(solution, Infeasible):
        raise PlacementError(solution.reason)
    return solution


def _saving(
    world: _World,
    trace: Trace,
    way: str,
    name: str,
    halves: Sequence[Halves],
    elsewhere: Sequence[Halves],
    step_s: float,
) -> Saving:
    saved = [getattr(half, name) for half in halves]
    mean_s = float(np.mean(saved))
    error_s = float(np.std(saved, ddof=1)) * (1 / len(saved) + 1) ** 0.5
    there_s = float(np.mean([getattr(half, name) for half in elsewhere])) if elsewhere else None
    verdict, reason = _judged(world, trace, way, mean_s, error_s, step_s)
    if there_s is not None and there_s < 0 < mean_s:
        reason += (
            f"; on traffic of another kind it costs {-there_s * 1e6:.1f} us: plan again for it"
        )
    return Saving(way, mean_s, error_s, mean_s / step_s, verdict, reason, there_s)


def _judged(
    world: _World, trace: Trace, way: str, saved_s: float, error_s: float, step_s: float
) -> tuple[Verdict, str]:
    if way != "pre-scheduling" and world.fits:
        return "not_worth_it", (
            f"every expert fits in the memory of {world.topology.gpus} GPUs: nothing is loaded"
        )
    if saved_s <= quantile(SPLITS - 1, CHANCE) * error_s:
        return "not_worth_it", "it is within what chance alone may do"
    if saved_s < WORTH * step_s:
        return "not_worth_it", f"it is less than {WORTH:.0%} of the step"
    if way == "pre-scheduling" and trace.token_ids is None:
        return "not_known", (
            "an upper bound: the trace has no token ids, and the experts of the first layer, which "
            "stand in, are not known before a token runs; record with token ids"
        )
    if way == "pre-scheduling" and trace.phase == "decode":
        return "not_known", (
            "an upper bound: these tokens were generated, and a request's home is chosen before; "
            "give traces of prompts (prefill), too"
        )
    return "worth_it", f"it exceeds the noise of {SPLITS} splits and {WORTH:.0%} of the step"


def _notes(trace: Trace, kinds: int) -> list[str]:
    found = [
        "seconds are of the MoE layers of a step where a token goes once to each GPU (dedup); "
        "where every rank gets every token (allgather), a request's home changes nothing"
    ]
    if kinds == 1:
        found.append(
            "how it does on other traffic is not known: give traces of other kinds as files of "
            "their own"
        )
    if trace.phase == "mixed":
        found.append("the trace does not tell prefill from decode: a step is taken as prefill's")
    return found
