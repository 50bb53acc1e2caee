"""exflow: experts that follow each other share a GPU, so that tokens stay where they are.

Formula: of all placements with equally many experts on every GPU in every layer, the one with the
fewest ``hops``: where an expert of a token and one of its next layer are least often on different
GPUs. Input: transitions. Source: ExFlow, arXiv 2401.08383, which has one expert a token; of more,
all pairs count alike (ours). With several nodes it goes by stages, as the paper does: first nodes,
then the GPUs inside each. That spares the slow links first and need not be best over all GPUs. It
has no replicas: redundant slots stay empty. Where GPUs do not divide the experts, they hold one
more or less.

Method, for a stage: GPUs are alike and only neighbouring layers meet, so the fewest crossings are a
shortest path over the layers' splits (chain.py). If all splits can be listed, this is exact: there
are 105 of 8 experts on 4 GPUs, 1716 of 14 on 2, one of as many experts as GPUs. Otherwise chains
are grown and refined, a layer at a time, which is an assignment problem; the shortest path through
the pieces of a dozen of them is where the next dozen starts. Where the paper's integer programme
(programme.py) is tiny, as two transitions of 12 experts are, a solver goes on from there. On more
it gets nowhere in minutes, since its relaxation crosses next to nothing.

Cost: Mixtral's 32 x 8 on 4 GPUs in 0.1 s, proven optimal; DeepSeek-V2-Lite's 26 x 64 on 8 GPUs in
2 s, with 3% fewer hops than recursive bipartition and the same refinement. The bound there is far
below, as it takes each transition for itself; where the optimum is known (32 x 8), searching alone
ends within 0.1% of it. It loses in balance, which it does not look at: experts
that follow each other tend to be hot together. It ignores groups; the current placement is only a
first guess. What a solver had found when its time ran out need not come out again.
"""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from math import factorial

import numpy as np

from placer.arrays import IntArray
from placer.errors import RoutingError
from placer.objective import Effort
from placer.optimizers.exflow.chain import (
    FEW,
    Chain,
    Counts,
    experts_of,
    fill,
    join,
    kept,
    most_kept,
    search,
)
from placer.optimizers.exflow.programme import chain_of, crossing_programme, values_of
from placer.plan import Solution
from placer.problem import Problem
from placer.solver import partitions

WAYS = 2_000  # splits of a layer that are all looked at
COMPARED = 6_000_000  # pairs of splits, times the orders of parts
ORDERS = 1_000  # what an assignment costs, in orders
TERMS = 4_000  # of a programme that a solver has a chance with
ROUNDING = 1e-12  # of all tokens
EXCHANGES = 64  # an expert, that a chain costs as much as


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """Splits of every layer, the tokens that change parts, and a bound that no splits go below."""

    chain: Chain
    crossing: float
    bound: float
    how: str


def optimize(problem: Problem) -> Solution:
    profile, topology = problem.profile, problem.topology
    if profile.transitions is None:
        raise RoutingError(
            f"exflow needs transitions and this profile of {profile.tokens:.0f} tokens has loads "
            "alone: give a trace, or use --optimizer eplb"
        )
    chains = topology.nodes + 1 if 1 < topology.nodes < topology.gpus else 1  # share the time
    effort = replace(problem.effort, time_limit_s=problem.effort.time_limit_s / chains)
    today = problem.start.copies.argmax(axis=2)  # [layers, experts] a GPU that holds it
    gpu = np.zeros_like(today)
    groups = [[np.arange(profile.experts)] * profile.layers]  # experts on the same node so far
    below, notes = topology.gpus, []
    inner = "GPUs" if topology.nodes == 1 else "GPUs of a node"
    for kind, width in (("nodes", topology.nodes), (inner, topology.gpus_per_node)):
        below //= width
        stages, finer = [], []
        for members in groups:
            counts = [
                count[np.ix_(one, other)]
                for count, (one, other) in zip(profile.transitions, pairwise(members), strict=True)
            ]
            start = [row[m] // below % width for row, m in zip(today, members, strict=True)]
            stages.append(split(counts, start, width, effort, problem.seed))
            for row, m, part in zip(gpu, members, stages[-1].chain, strict=True):
                row[m] = row[m] * width + part
            finer += [
                [m[part == each] for m, part in zip(members, stages[-1].chain, strict=True)]
                for each in range(width)
            ]
        groups = finer
        if width > 1:
            notes.append(_note(kind, stages, profile.tokens))
    if empty := problem.slots - profile.experts:
        notes.append(f"exflow has no replicas: {empty} slots a layer are empty")
    return Solution(problem.partition(gpu), notes=tuple(notes))


def split(counts: Counts, start: Chain, parts: int, effort: Effort, seed: int) -> Stage:
    """Every layer's experts in ``parts``, so that few tokens change parts; ``start`` is a guess."""
    if not counts:
        return Stage([fill(np.eye(parts)[start[0]])], 0.0, 0.0, "optimal")
    total = float(sum(count.sum() for count in counts))
    if (pools := every_split(experts_of(counts), parts)) is not None:
        chain = join(counts, pools, parts)
        crossing = total - kept(counts, chain)
        return Stage(chain, crossing, crossing, "optimal")
    tries = max(4, effort.iterations // (EXCHANGES * sum(map(len, start))))
    chain = search(counts, parts, tries, [start], seed)
    crossing, bound = total - kept(counts, chain), total - most_kept(counts, parts)
    if crossing <= bound + ROUNDING * total:
        return Stage(chain, crossing, crossing, "optimal")
    if sum(count.size for count in counts) * parts * 3 > TERMS:
        return Stage(chain, crossing, bound, "local search")
    programme, on = crossing_programme(counts, parts)
    answer = programme.solve(effort, values_of(counts, chain, parts))
    if answer.values is not None:
        found = chain_of(answer.values, on)
        if (better := total - kept(counts, found)) < crossing:
            chain, crossing = found, better
    bound = min(crossing, max(bound, answer.bound or 0.0))
    return Stage(chain, crossing, bound, f"{answer.status} ({effort.solver})")


def every_split(experts: list[int], parts: int) -> list[IntArray] | None:
    """For each layer, [ways, experts] all its splits; None if they are too many to compare."""
    ways = {n: partitions(n, parts, (n // parts, -(-n // parts)), WAYS) for n in set(experts)}
    orders = factorial(parts) if parts <= FEW else ORDERS
    listed = [way for way in (ways[n] for n in experts) if way is not None]
    if len(listed) < len(experts) or max(map(len, listed)) ** 2 * orders > COMPARED:
        return None
    return listed


def _note(kind: str, stages: list[Stage], tokens: float) -> str:
    crossing = sum(stage.crossing for stage in stages) / tokens
    bound = sum(stage.bound for stage in stages) / tokens
    ended = sorted(Counter(stage.how for stage in stages).items())
    how = ", ".join(how if len(ended) == 1 else f"{count} {how}" for how, count in ended)
    gap = f", gap {1 - bound / crossing:.1%}" if bound < crossing else ""
    return f"between {kind}: {crossing:.4g} hops a token, bound {bound:.4g}{gap}: {how}"
