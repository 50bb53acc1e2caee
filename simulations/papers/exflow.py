"""ExFlow (arXiv 2401.08383): how often tokens change GPUs between layers, by the number of GPUs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from placer import topology
from placer.cost import score
from placer.model import ModelShape
from placer.objective import Objective
from placer.plan import Solution
from placer.planner import solve
from placer.problem import Problem
from placer.profile import of_trace
from placer.trace import Trace
from simulations.papers.recorded import SHAPE, lite
from simulations.papers.table import How, Row, Table

GPT = ModelShape("gpt-moe-64", 12, 64, 1, 1024, 4096, matrices=2)
MIXTRAL = ModelShape("mixtral, top-1", 32, 8, 1, 4096, 14336)
TOKENS, LENGTH = 3000, 60  # to plan from, and as many to judge on; of a sequence
A_NODE = 4  # GPUs
# How much more likely experts follow some than others: deviation of the chances' logarithms, chosen
# so that 4 GPUs come out as published.
AFFINITY = {GPT.name: 2.4, MIXTRAL.name: 0.94}
PUBLISHED: Mapping[str, Mapping[int, tuple[float, ...]]] = {
    GPT.name: {4: (-0.40,), 8: (), 16: (), 32: (-0.25,)},
    MIXTRAL.name: {4: (17.50 / 23.25 - 1,), 8: (22.17 / 27.13 - 1,)},
}
FAR = 0.05  # further off, a row says why
WHY_CHAIN = (
    "Each expert has its few followers here, which two experts a GPU nearly hold; a trained "
    "model's affinity is spread over more."
)
WHY_TOP_6 = (
    "Six experts a token: each of the 36 pairs of two layers counts alike, and they cannot all be "
    "on one GPU."
)


def tables(seeds: int, data: Path | None = None) -> Sequence[Table]:
    found = [drawn(shape, seeds) for shape in (GPT, MIXTRAL)]
    if (trace := lite(data)) is not None:
        found.append(recorded(trace, seeds))
    return found


def drawn(shape: ModelShape, seeds: int) -> Table:
    rows = []
    for gpus, published in PUBLISHED[shape.name].items():
        some = [follows(shape, AFFINITY[shape.name], 2 * TOKENS, seed) for seed in range(seeds)]
        fewer = np.mean([crossings(shape, trace, gpus, seed) for seed, trace in enumerate(some)])
        how: How = "calibrated" if gpus == A_NODE else "predicted"
        why = WHY_CHAIN if any(abs(fewer - one) > FAR for one in published) else ""
        rows.append(Row(f"crossings, {gpus} GPUs", published, float(fewer), how, why=why))
    return Table(
        f"ExFlow, {shape.experts} experts",
        f"{shape.dims}, routed by a Markov chain of experts whose affinity makes 4 GPUs come out "
        f"as published; {A_NODE} GPUs a node; crossings against a random placement, planned from "
        f"{TOKENS:,} tokens and counted on {TOKENS:,} others.",
        rows,
    )


def recorded(trace: Trace, seeds: int) -> Table:
    rows = []
    for gpus, published in PUBLISHED[GPT.name].items():
        fewer = np.mean([crossings(SHAPE, trace, gpus, seed) for seed in range(seeds)])
        why = WHY_TOP_6 if published else ""
        rows.append(Row(f"crossings, {gpus} GPUs", published, float(fewer), "measured", why=why))
    return Table(
        "ExFlow, recorded routing",
        f"{SHAPE.name}, {SHAPE.dims}, recorded; {A_NODE} GPUs a node; crossings as docs/metrics.md "
        "defines hops (the same in any order of a token's experts) against a random placement, "
        "planned from half of the sequences and counted on the others; published is of top-1 "
        "models with 64 experts.",
        rows,
    )


def follows(shape: ModelShape, affinity: float, tokens: int, seed: int) -> Trace:
    """Top-1 routing in which a token's next expert depends on its last."""
    rng = np.random.default_rng(seed)
    chance = np.exp(affinity * rng.normal(size=(shape.layers - 1, shape.experts, shape.experts)))
    upto = np.cumsum(chance, axis=2)
    upto /= upto[:, :, -1:]
    ids = np.empty((tokens, shape.layers, 1), dtype=np.int64)
    ids[:, 0, 0] = rng.integers(shape.experts, size=tokens)
    for layer, rows in enumerate(upto):
        lots = rng.random((tokens, 1))
        ids[:, layer + 1, 0] = (rows[ids[:, layer, 0]] < lots).sum(axis=1)
    return Trace(ids, np.full(tokens // LENGTH, LENGTH), shape.experts)


def crossings(shape: ModelShape, trace: Trace, gpus: int, seed: int) -> float:
    """How many fewer hops than with a random placement, held out, as a share of those."""
    fit, judged = trace.split(0.5, seed)
    problem = Problem(
        model=shape,
        topology=topology.preset("a100").resized(gpus, -(-gpus // A_NODE)),
        profile=of_trace(fit),
        slots=shape.experts,
        objective=Objective("coherent", memory_share=1.0),
        trace=fit,
    )
    solution = solve(problem, "exflow")
    assert isinstance(solution, Solution)
    found = score(problem, solution.placement, judged).hops
    assert found is not None
    return found / at_random(shape.layers, gpus) - 1


def at_random(layers: int, gpus: int) -> float:
    """Hops if experts stand anywhere: each transition leaves for any GPU alike. For 32 layers these
    are the paper's 23.25 on 4 GPUs and 27.13 on 8."""
    return (layers - 1) * (1 - 1 / gpus)
