"""What a placement costs: balance, traffic, compute, memory and moves, behind one ``score``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from placer.arrays import FloatArray
from placer.cost import balance, compute, links, outlook, owned, traffic
from placer.cost.traffic import Traffic
from placer.errors import PlacementError
from placer.placement import Placement
from placer.problem import Problem
from placer.trace import Trace


@dataclass(frozen=True, slots=True)
class Score:
    """Figures of one placement. None is: not known from this input.

    basis:   ``expected`` from a profile, or ``measured`` token by token on a trace
    balancedness, _min, _aggregate: replicas share evenly; mean over layers, worst layer, and
             the layers' sums as vLLM logs it
    balancedness_served: mean over layers with replicas chosen by the dispatch rule
    fanout_gpus, fanout_nodes: distinct GPUs and nodes a token, mean over tokens and layers
    hops:    chance that experts of consecutive layers of a token are on different GPUs, summed
             over layers
    step_s:  seconds of one step's MoE layers, the sum of the three below it
    dispatch_s, combine_s: what of them the objective's overlap does not hide
    """

    basis: Literal["expected", "measured"]
    balancedness: float
    balancedness_min: float
    balancedness_aggregate: float
    balancedness_served: float
    fanout_gpus: float | None
    fanout_nodes: float | None
    hops: float | None
    step_s: float
    dispatch_s: float
    experts_s: float
    combine_s: float


def score(
    problem: Problem,
    placement: Placement,
    trace: Trace | None = None,
    only_timed: bool = False,
    homes: npt.NDArray[Any] | None = None,
) -> Score:
    """What ``placement`` does to the problem's profile or, if given, to the trace's tokens.

    Seconds are of a step in which every GPU brings the objective's ``tokens_per_gpu`` tokens,
    routed as in the profile or trace: dispatch + experts + combine, each the slowest GPU's. Where a
    part of the profile's traffic is unknown, that is the slowest to be expected (outlook.py).
    only_timed: fan-out and hops may be left out, which time does not depend on
    homes: the GPU of each of the trace's sequences, or without a trace, of the profile's clusters,
        [clusters, gpus] the share that each GPU owns (``dedup``); None: the least loaded's

    Raises PlacementError if no slot holds an expert: its tokens cannot be served.
    """
    _refuse_lost(placement)
    if trace is None:
        load = problem.profile.load
        flows = _expected(problem, placement, only_timed, homes)
    else:
        load = trace.load.astype(np.float64)
        flows = traffic.measured(trace, placement, problem.objective.dispatch, homes)
    uncertain_s = _uncertain_s(problem, placement) if trace is None else 0.0
    by_part = _seconds(problem, placement, load, flows, uncertain_s)
    dispatch_s, experts_s, combine_s = by_part

    rank_load = balance.rank_load(load, placement)
    layers = balance.by_layer(rank_load)
    return Score(
        basis="expected" if trace is None else "measured",
        balancedness=float(layers.mean()),
        balancedness_min=float(layers.min()),
        balancedness_aggregate=balance.aggregate(rank_load),
        balancedness_served=float(balance.by_layer(flows.served).mean()),
        fanout_gpus=_mean(flows.fanout_gpus),
        fanout_nodes=_mean(flows.fanout_nodes),
        hops=flows.hops,
        step_s=float(by_part.sum()),
        dispatch_s=float(dispatch_s.sum()),
        experts_s=float(experts_s.sum()),
        combine_s=float(combine_s.sum()),
    )


def step_seconds(
    problem: Problem, placement: Placement, tokens_per_gpu: Sequence[int]
) -> Sequence[float]:
    """``score``'s ``step_s``, as expected, of steps with so many tokens a GPU each."""
    _refuse_lost(placement)
    load, flows = problem.profile.load, _expected(problem, placement, True, None)
    found = []
    for tokens in tokens_per_gpu:
        objective = replace(problem.objective, tokens_per_gpu=tokens)
        step = replace(problem, objective=objective)
        uncertain_s = _uncertain_s(step, placement)
        found.append(float(_seconds(step, placement, load, flows, uncertain_s).sum()))
    return found


def _refuse_lost(placement: Placement) -> None:
    if lost := placement.lost:
        raise PlacementError(
            "no slot of layer {} holds expert {}: its tokens cannot be served, so there is nothing "
            "to measure; placer plan --current mends such a map".format(*lost[0])
        )


def _uncertain_s(problem: Problem, placement: Placement) -> FloatArray | float:
    """What experts take at least, where a part of the traffic is not known."""
    if problem.profile.unknown is None:
        return 0.0
    return outlook.uncertain_seconds(problem, placement)


def _expected(
    problem: Problem,
    placement: Placement,
    only_timed: bool,
    homes: npt.NDArray[Any] | None,
) -> Traffic:
    if homes is not None:
        return owned.expected(problem.profile, placement, homes)
    return traffic.expected(problem.profile, placement, problem.objective.dispatch, only_timed)


def layer_seconds(problem: Problem, placement: Placement) -> FloatArray:
    """[layers] seconds of a step's MoE layers, as expected from the problem's profile."""
    flows = traffic.expected(problem.profile, placement, problem.objective.dispatch, True)
    return _seconds(problem, placement, problem.profile.load, flows).sum(axis=0)


def _seconds(
    problem: Problem,
    placement: Placement,
    load: FloatArray,
    flows: Traffic,
    uncertain_s: FloatArray | float = 0.0,
) -> FloatArray:
    """[3, layers] dispatch, experts and combine of a step.

    load:        [layers, experts] of the flows
    uncertain_s: [layers] that the experts take at least
    """
    topology, objective = problem.topology, problem.objective
    step_tokens = objective.tokens_per_gpu * topology.gpus
    scale = step_tokens / flows.tokens
    experts_s = compute.seconds(problem, placement, flows.served * scale, load * scale)
    experts_s = np.maximum(experts_s, uncertain_s)
    there, back = problem.model.dispatch_bytes, problem.model.combine_bytes
    if objective.dispatch == "allgather":
        exchange = [links.allgather_seconds(topology, step_tokens, size) for size in (there, back)]
        dispatch_s, combine_s = (np.full(len(load), seconds) for seconds in exchange)
    else:
        dispatch_s = links.seconds(flows.dispatch, topology, there * scale)
        combine_s = links.seconds(flows.combine, topology, back * scale)
    shown = links.exposed(dispatch_s + combine_s, experts_s, objective.overlap)
    return np.stack([dispatch_s * shown, experts_s, combine_s * shown])


def _mean(by_layer: FloatArray | None) -> float | None:
    return None if by_layer is None else float(by_layer.mean())
