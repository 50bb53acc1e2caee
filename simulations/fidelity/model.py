"""What the engine model predicts, with the constants of an engine; and how these are fitted."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from placer.arrays import FloatArray
from placer.cost.balance import rank_load
from placer.model import ModelShape
from placer.objective import Objective
from placer.placement import Placement
from placer.problem import Problem
from placer.profile import Profile
from placer.topology import Gpu, Link, Topology
from simulations.arrivals import Arrivals
from simulations.fidelity.seen import Seen
from simulations.kernels import GRID
from simulations.serving import Serving
from simulations.state import Speeds
from simulations.step_seconds import step_seconds

MANY = 2**30
FREE = 1e24  # a rate at which it takes no time
FITS = 400  # simulations of a fit, about


@dataclass(frozen=True, slots=True)
class Constants:
    """What is fitted of an engine on this machine: seconds of a step, and in it of a token outside
    the experts, of a token of context, and of a token in one expert."""

    overhead_s: float
    dense_token_s: float
    kv_token_s: float
    expert_token_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """What is known of it. budget: tokens of a rank's step; prompts: of prompts in it"""

    shape: ModelShape
    budget: int
    prompts: int = MANY


def predicted(
    engine: Engine,
    constants: Constants,
    placement: Placement,
    arrivals: Arrivals,
    load: FloatArray,
) -> Seen:
    """load: [layers, experts] activations, as they were recorded before"""
    speeds = Speeds(
        constants.overhead_s, 0.0, constants.dense_token_s, constants.kv_token_s,
        token_budget=engine.budget, prompt_budget=engine.prompts, switch_s=0.0,
    )  # fmt: skip
    serving = Serving(arrivals, 1, placement.gpus, placement.gpus, speeds)
    problem = _problem(engine.shape, constants, placement, load)
    state = serving.state
    state.table[0] = step_seconds(problem, placement, [2**power for power in range(GRID)])
    for one, at_s in enumerate(arrivals.at_s):
        serving.advance(at_s)
        serving.place(one, at_s)
    serving.advance(np.inf)
    activations = load / load.sum(axis=1, keepdims=True)
    return Seen(arrivals, state.first_s, state.last_s, load, rank_load(activations, placement))


def _problem(
    shape: ModelShape, constants: Constants, placement: Placement, load: FloatArray
) -> Problem:
    objective, gpus = Objective(), placement.gpus
    flops = shape.expert_flops / constants.expert_token_s / objective.efficiency
    gpu = Gpu(flops, flops, 2**40, FREE)
    link = Link(FREE, 0.0)
    tokens = float(load[0].sum()) / shape.top_k
    return Problem(
        model=shape,
        topology=Topology("this machine", gpus, 1, gpu, link, link),
        profile=Profile(load, shape.top_k, tokens, sequences=0, sampled=True),
        slots=placement.slots,
        objective=objective,
    )


def fitted(engine: Engine, placement: Placement, seen: Seen) -> Constants:
    """Those with which requests' seconds come out: their means, and by the mean of squared
    logarithms each."""
    measured = seen.seconds.values()

    def error(logs: FloatArray) -> float:
        constants = Constants(*np.exp(logs).tolist())
        ours = predicted(engine, constants, placement, seen.arrivals, seen.load).seconds
        return sum(
            float((of.mean() / theirs.mean() - 1) ** 2 + (np.log(of / theirs) ** 2).mean())
            for of, theirs in zip(ours.values(), measured, strict=True)
        )

    step_s = float(np.median(seen.seconds["TPOT"]))
    layers = engine.shape.layers * engine.shape.top_k
    start = np.log([step_s / 2, step_s / 20, step_s / 1e4, step_s / 20 / layers])
    found = minimize(error, start, method="Nelder-Mead", options={"maxfev": FITS, "adaptive": True})
    return Constants(*np.exp(found.x).tolist())
