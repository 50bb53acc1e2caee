"""Communication behind the experts' work, on and off: Comet (arXiv 2502.19811), and the two-batch
overlap of SGLang (lmsys.org/blog/2025-05-05-large-scale-ep)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from placer import model, topology
from placer.cost import score
from placer.objective import Objective
from placer.problem import Problem
from placer.topology import GB, Link, Topology
from simulations.papers.table import Row, Table
from simulations.routing import drawn

H100 = topology.preset("h100")
H800 = replace(H100, name="h800", local=Link(200 * GB, H100.local.latency_s))  # NVLink cut to 400
SKEW = 0.3  # deviation of the loads' logarithms
WHY_COMET = (
    "The paper's baselines spend 47% of whole runs in communication, more than bytes over links "
    "come to here."
)
WHY_SGLANG = "The published figure is of whole steps, with attention to hide behind as well."


@dataclass(frozen=True)
class Case:
    """tokens: that each GPU brings; published: times as fast with overlap as without"""

    name: str
    model: str
    topology: Topology
    tokens: int
    published: tuple[float, ...]
    why: str


CASES = (
    Case("Comet, a MoE layer", "mixtral-8x7b", H800, 2048, (1.96,), WHY_COMET),
    Case("SGLang, prefill", "deepseek-v3", H100.resized(32), 8192, (1.27, 1.35), WHY_SGLANG),
    Case("SGLang, decode", "deepseek-v3", H100.resized(72), 256, (1.255,), WHY_SGLANG),
)


def tables(seeds: int, data: Path | None = None) -> Sequence[Table]:
    rows = []
    for case in CASES:
        sent, faster = np.mean([figures(case, seed) for seed in range(seeds)], axis=0)
        where = case.topology.title
        rows += [
            Row(f"{case.name} on {where}", case.published, float(faster), "predicted", "{:.2f}x",
                case.why),
            Row(f"{case.name}: share of communication without overlap", (), float(sent),
                "predicted", "{:.0%}"),
        ]  # fmt: skip
    about = (
        "Mixtral-8x7B and DeepSeek-V3 (288 slots), dedup, the linear placement of slightly uneven "
        "loads: MoE layers with all communication hidden that the experts' work lasts for, over "
        "those with none."
    )
    return [Table("Overlap on and off", about, rows)]


def figures(case: Case, seed: int) -> tuple[float, float]:
    """The share of communication without overlap, and how much faster it is with."""
    shape = model.preset(case.model)
    gpus = case.topology.gpus
    problem = Problem(
        model=shape,
        topology=case.topology,
        profile=drawn(shape, SKEW, 0.0, 1, 0.0, seed).profile(0, shape.top_k),
        slots=-(-shape.experts // gpus) * gpus,
        objective=Objective("dedup", case.tokens),
    )
    hidden = replace(problem, objective=replace(problem.objective, overlap=1.0))
    off, on = (score(one, one.linear, only_timed=True) for one in (problem, hidden))
    return (off.dispatch_s + off.combine_s) / off.step_s, off.step_s / on.step_s
