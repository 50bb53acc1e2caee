"""DeepSeek's balancer against nothing, as SGLang measured it with DeepSeek-V3 on 96 H100s
(lmsys.org/blog/2025-05-05-large-scale-ep)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from placer import model, topology
from placer.cost import Score, score
from placer.model import ModelShape
from placer.objective import STEP_TOKENS_PER_GPU, Objective
from placer.plan import Solution
from placer.planner import solve
from placer.problem import Problem
from placer.profile import Profile, of_trace
from placer.trace import Trace
from simulations.papers.recorded import SHAPE, lite
from simulations.papers.table import Row, Table
from simulations.routing import drawn

# Tokens a GPU brings to a step, GPUs, and how much more are served with the balancer than without.
PHASES = {"prefill": (8192, 32, 1.49), "decode": (256, 72, 2.54)}
SLOTS = 288
SKEW = 0.89  # deviation of the loads' logarithms, chosen so that prefill comes out as published
WHY_DECODE = (
    "A decode step reads its experts' weights whatever their loads are, so that balance wins less "
    "in the model; the published figure is of whole steps with DeepEP's low-latency kernels."
)


def tables(seeds: int, data: Path | None = None) -> Sequence[Table]:
    trace = lite(data)
    return [drawn_loads(seeds), *([recorded(trace, seeds)] if trace else [])]


def drawn_loads(seeds: int) -> Table:
    shape, rows = model.preset("deepseek-v3"), []
    for phase, (tokens, gpus, published) in PHASES.items():
        some = []
        for seed in range(seeds):
            profile = drawn(shape, SKEW, 0.0, 1, 0.0, seed).profile(0, shape.top_k)
            some.append(sped(problem(shape, profile, gpus, SLOTS, tokens)))
        before, after, faster = (float(one) for one in np.mean(some, axis=0))
        is_fit = phase == "prefill"
        why = "" if is_fit else WHY_DECODE
        rows += [
            Row(f"{phase}, {gpus} GPUs: throughput", (published,), faster,
                "calibrated" if is_fit else "predicted", "{:.2f}x", why),
            Row(f"{phase}: balancedness without", (), before, "predicted", "{:.3f}"),
            Row(f"{phase}: balancedness with", (), after, "predicted", "{:.3f}"),
        ]  # fmt: skip
    return Table(
        "EPLB against nothing",
        f"DeepSeek-V3, {SLOTS} slots a layer, dedup with all communication that fits hidden; "
        "log-normal loads, as skewed as prefill's published figure takes; throughput is of the MoE "
        "layers.",
        rows,
    )


def recorded(trace: Trace, seeds: int) -> Table:
    some = []
    for seed in range(seeds):
        fit, judged = trace.split(0.5, seed)
        one = problem(SHAPE, of_trace(fit), 8, SHAPE.experts, STEP_TOKENS_PER_GPU["prefill"])
        some.append(sped(one, judged))
    before, after, faster = (float(one) for one in np.mean(some, axis=0))
    rows = [
        Row("throughput of the MoE layers", (), faster, "predicted", "{:.2f}x"),
        Row("balancedness without", (), before, "measured", "{:.3f}"),
        Row("balancedness with", (), after, "measured", "{:.3f}"),
    ]
    about = (
        f"{SHAPE.name} on 8 H100s without redundancy, planned from half of the recorded sequences "
        "and judged on the others."
    )
    return Table("EPLB against nothing, recorded routing", about, rows)


def problem(shape: ModelShape, profile: Profile, gpus: int, slots: int, tokens: int) -> Problem:
    objective = Objective("dedup", tokens, overlap=1.0)
    return Problem(shape, topology.preset("h100").resized(gpus), profile, slots, objective)


def sped(problem: Problem, judged: Trace | None = None) -> tuple[float, float, float]:
    """Balancedness of what engines start with, and of eplb's placement; and how much faster that
    is."""
    solution = solve(problem, "eplb")
    assert isinstance(solution, Solution)
    before, after = (
        score(problem, one, judged, only_timed=True) for one in (problem.linear, solution.placement)
    )
    return before.balancedness, after.balancedness, _faster(before, after)


def _faster(before: Score, after: Score) -> float:
    return before.step_s / after.step_s
