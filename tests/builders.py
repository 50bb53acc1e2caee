"""Tiny worlds that a reader can check by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from placer import topology
from placer.arrays import FloatArray
from placer.model import ModelShape
from placer.objective import Objective
from placer.placement import Placement
from placer.problem import Problem
from placer.profile import Profile, of_trace
from placer.topology import Gpu, Link, Topology
from placer.trace import Trace


def a_model(layers: int = 2, experts: int = 4, top_k: int = 1, **more: Any) -> ModelShape:
    return ModelShape("tiny", layers, experts, top_k, hidden=8, moe_intermediate=4, **more)


def a_topology(gpus: int = 2, nodes: int = 1) -> Topology:
    return topology.preset("h100").resized(gpus, nodes)


def by_hand(gpus: int = 2) -> Topology:
    """Where an expert of ``a_model`` takes a microsecond a token, and links take no time."""
    free = Link(bytes_per_s=1e30, latency_s=0.0)
    flops = 2 * a_model().expert_flops * 1e6  # of which arithmetic reaches half
    return Topology("by hand", gpus, 1, Gpu(flops, flops, 10_000, 1e30), free, free)


def a_trace(
    tokens: Sequence[Sequence[Sequence[float]]],
    experts: int = 4,
    seq_lens: Sequence[int] | None = None,
    **more: Any,
) -> Trace:
    """``tokens``: for each token, for each layer, its experts."""
    lens = [len(tokens)] if seq_lens is None else seq_lens
    return Trace(np.array(tokens), np.array(lens), experts, **more)


def a_placement(
    rows: Sequence[Sequence[int]], experts: int = 4, gpus: int = 2, nodes: int = 1
) -> Placement:
    return Placement(np.array(rows), experts, gpus, nodes)


def loads(rows: Sequence[Sequence[float]], top_k: int = 1) -> Profile:
    """A profile that knows loads alone."""
    load: FloatArray = np.array(rows, dtype=np.float64)
    tokens = float(load.sum(axis=1).max()) / top_k
    return Profile(load, top_k, tokens, sequences=1, sampled=True)


def requests(*hot: float, tokens: int = 64) -> Profile:
    """Top-1 traffic of two experts: of each request, the share of tokens that use expert 0."""
    rows = [[[int(at >= share * tokens)]] for share in hot for at in range(tokens)]
    return of_trace(a_trace(rows, experts=2, seq_lens=[tokens] * len(hot)))


def a_problem(
    profile: Profile | Trace,
    slots: int | None = None,
    gpus: int = 2,
    nodes: int = 1,
    objective: Objective | None = None,
    **more: Any,
) -> Problem:
    """A problem whose model fits the profile; ``more`` goes to Problem."""
    found = of_trace(profile) if isinstance(profile, Trace) else profile
    return Problem(
        model=more.pop("model", a_model(found.layers, found.experts, found.top_k)),
        topology=a_topology(gpus, nodes),
        profile=found,
        slots=found.experts if slots is None else slots,
        objective=objective or Objective(),
        trace=profile if isinstance(profile, Trace) else None,
        **more,
    )


def random_trace(
    seed: int, tokens: int = 40, layers: int = 2, experts: int = 4, top_k: int = 2
) -> Trace:
    """Skewed routing: experts with low ids are hotter."""
    rng = np.random.default_rng(seed)
    preference = rng.gumbel(size=(tokens, layers, experts)) - np.log(np.arange(experts) + 1)
    ids = np.argsort(-preference, axis=2)[:, :, :top_k]
    cut = int(rng.integers(1, tokens))
    return Trace(ids, np.array([cut, tokens - cut]), experts)


@st.composite
def worlds(draw: st.DrawFn) -> Problem:
    """Small problems of every kind: layers, experts, GPUs, nodes, replicas."""
    nodes = draw(st.sampled_from([1, 2]))
    gpus = nodes * draw(st.sampled_from([1, 2]))
    per_gpu = draw(st.integers(1, 3))
    experts = gpus * per_gpu
    top_k = draw(st.integers(1, min(2, experts)))
    extra = draw(st.integers(0, experts // gpus * (gpus - 1)))
    seed = draw(st.integers(0, 2**16))
    layers = draw(st.integers(1, 3))
    trace = random_trace(seed, layers=layers, experts=experts, top_k=top_k)
    problem = a_problem(trace, gpus=gpus, nodes=nodes)
    return replace(problem, slots=experts + extra // gpus * gpus)
