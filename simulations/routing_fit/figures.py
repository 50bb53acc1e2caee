"""What placer makes of a trace, recorded or drawn: figures to compare."""

from collections.abc import Mapping

import numpy as np

from placer import topology
from placer.cost import score
from placer.errors import RoutingError
from placer.model import ModelShape
from placer.objective import Objective
from placer.placement import Placement, linear
from placer.plan import Solution
from placer.planner import solve
from placer.problem import Problem
from placer.profile import of_trace
from placer.trace import Trace
from simulations.routing_fit.moments import moments

RANKS = 8
PLANNERS = ("eplb", "joint")


def figures(trace: Trace, model: ModelShape, seed: int = 0) -> Mapping[str, float]:
    """seed: which sequences plans are made from; the others judge them"""
    share = trace.load / trace.tokens
    found = {
        "deviation of log loads": float(np.log(np.maximum(share, 1 / trace.tokens)).std(1).mean()),
        "largest load / mean": float((share.max(axis=1) / share.mean(axis=1)).mean()),
    }
    for ranks in (RANKS // 2, RANKS):
        problem = _problem(trace, model, ranks)
        told = score(problem, _linear(problem), trace)
        assert told.fanout_gpus is not None
        found[f"fan-out, linear, {ranks} ranks"] = told.fanout_gpus
    found[f"hops, linear, {RANKS} ranks"] = told.hops or 0.0
    found["variety"] = problem.profile.variety or 0.0
    found["drift"] = max(moments(trace).drift, 0.0) ** 0.5
    return found | _plans(*trace.split(0.5, seed), model)


def _plans(fit: Trace, judged: Trace, model: ModelShape) -> dict[str, float]:
    """Of plans of one half, measured on the other."""
    problem = _problem(fit, model, RANKS)
    found, step_s = {}, {}
    for name in PLANNERS:
        solution = solve(problem, name)
        if not isinstance(solution, Solution):
            raise RoutingError(f"{name} has no plan for {model.name} on {RANKS} ranks")
        told = score(problem, solution.placement, judged)
        assert told.fanout_gpus is not None
        found[f"balancedness, {name}"] = told.balancedness
        found[f"fan-out, {name}"] = told.fanout_gpus
        found[f"hops, {name}"] = told.hops or 0.0
        step_s[name] = told.step_s
    linear_s = score(problem, _linear(problem), judged).step_s
    return found | {f"step / linear's, {name}": step_s[name] / linear_s for name in PLANNERS}


def _problem(trace: Trace, model: ModelShape, ranks: int) -> Problem:
    return Problem(
        model=model,
        topology=topology.preset("h100").resized(ranks),
        profile=of_trace(trace),
        slots=-(-trace.experts // ranks) * ranks,
        objective=Objective("dedup"),
        trace=trace,
    )


def _linear(problem: Problem) -> Placement:
    of = problem.topology
    return linear(problem.model.layers, problem.slots, problem.model.experts, of.gpus, of.nodes)
