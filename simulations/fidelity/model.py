"""What the engine model predicts, with the constants of an engine; and how these are fitted."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

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
from simulations.serving import Serving
from simulations.state import Speeds
from simulations.step_seconds import grid

MANY = 2**30
FREE = 1e24  # a rate at which it takes no time


@dataclass(frozen=True, slots=True)
class Constants:
    """What is fitted of an engine on this machine.

    overhead_s: of a step, whatever is in it
    token_s:    of a token of the rank that has most, outside the experts
    request_s:  of a request whose first token it brings, beyond its tokens
    expert_s:   of an expert that gets tokens at all, however many
    link_s:     until ranks have what others sent them: twice a layer
    """

    overhead_s: float
    token_s: float
    request_s: float
    expert_s: float
    link_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Engine:
    """What is known of it. budget: tokens of a rank's step; prompts: of prompts in it; is_split:
    whether each request is all ranks' (tensor parallelism), and not one's own"""

    shape: ModelShape
    budget: int
    prompts: int = MANY
    is_split: bool = False

    def ranks(self, placement: Placement) -> int:
        """That have requests of their own."""
        return 1 if self.is_split else placement.gpus


def predicted(
    engine: Engine,
    constants: Constants,
    placement: Placement,
    arrivals: Arrivals,
    load: FloatArray,
) -> Seen:
    """load: [layers, experts] activations, as they were recorded before"""
    ranks = engine.ranks(placement)
    speeds = Speeds(
        constants.overhead_s, 0.0, constants.token_s, 0.0,
        token_budget=engine.budget, prompt_budget=engine.prompts, switch_s=0.0,
        request_s=constants.request_s,
    )  # fmt: skip
    serving = Serving(arrivals, 1, ranks, ranks, speeds)
    state = serving.state
    problem = _problem(engine.shape, constants, placement, load)
    state.table[0] = grid(problem, placement)
    serving.serve_all()
    activations = load / load.sum(axis=1, keepdims=True)
    return Seen(arrivals, state.first_s, state.last_s, load, rank_load(activations, placement))


def _problem(
    shape: ModelShape, constants: Constants, placement: Placement, load: FloatArray
) -> Problem:
    rate = shape.expert_bytes / max(constants.expert_s, 1 / FREE)
    gpu = Gpu(FREE, FREE, 2**40, rate)
    link = Link(FREE, constants.link_s)
    tokens = float(load[0].sum()) / shape.top_k
    return Problem(
        model=shape,
        topology=Topology("this machine", placement.gpus, 1, gpu, link, link),
        profile=Profile(load, shape.top_k, tokens, sequences=0, sampled=True),
        slots=placement.slots,
        objective=Objective(),
    )


def fitted(engine: Engine, seen: Seen) -> Constants:
    """On an engine's steps, by least squares. What an expert takes is told by how ranks differ in a
    step, since a host's pace is not even: who has more to do waits less (of a single one, by how
    steps differ). What they wait beyond that is links'; and what a step takes beyond its experts,
    of which a rank's own work is a part, is by its tokens and the requests that begin."""
    assert seen.steps is not None
    seconds, tokens, experts, waited_s, begun = seen.steps
    active, most = experts.sum(axis=1), experts.max(axis=2).sum(axis=1)
    axis = int(tokens.shape[1] > 1)
    every = tokens, active, seconds[:, None] - waited_s
    own, of_experts, work_s = ((one - one.mean(axis, keepdims=True)).ravel() for one in every)
    (own_s, expert_s), _ = nnls(np.stack([own, of_experts], axis=1), work_s)
    known = np.stack([np.ones(len(seconds)), tokens.max(axis=1), begun.max(axis=1)], axis=1)
    (fixed_s, token_s, request_s), _ = nnls(known, seconds - expert_s * most)
    uneven_s = own_s * (tokens.max(axis=1) - tokens.mean(axis=1))
    uneven_s += expert_s * (most - active.mean(axis=1))
    links_s = max(float((waited_s.mean(axis=1) - uneven_s).mean()), 0.0)
    link_s = links_s / (2 * engine.shape.layers)
    return Constants(*map(float, (fixed_s - links_s, token_s, request_s, expert_s, link_s)))
