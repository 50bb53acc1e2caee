"""Every optimizer on real routing, judged on sequences that it never saw."""

import os
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from rich.table import Table

from bench.timing import console
from placer import model, topology
from placer.cost import score
from placer.files.routing import read_trace
from placer.objective import Dispatch, Objective
from placer.placement import Placement
from placer.plan import Solution
from placer.planner import solve
from placer.problem import Problem
from placer.profile import of_trace
from placer.trace import Trace, concatenate

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PLACER_TEST_DATA", ROOT.parent / "shared" / "data"))
NAMES = ("eplb", "linear", "moetuner", "exflow", "cocluster", "joint")
GPUS, SPLITS = 8, 4


@dataclass(frozen=True)
class Setting:
    """``pairs`` of what to plan from and what to judge on; figures are medians over them."""

    title: str
    pairs: list[tuple[Trace, Trace]]
    redundant: int = 0
    dispatch: Dispatch = "dedup"


def run() -> None:
    paths = sorted((DATA / "deepseek-v2-lite-routing").glob("*.npz"))
    if not paths:
        console.print(f"optimizers: left out, no DeepSeek-V2-Lite traces in {DATA}")
        return
    shape = model.preset("deepseek-v2-lite")
    intent, law = (read_trace(path, shape) for path in paths)
    both = concatenate([intent, law])
    halves = [both.split(0.5, seed) for seed in range(SPLITS)]
    for setting in (
        Setting("no redundancy", halves),
        Setting("16 redundant slots", halves, redundant=16),
        Setting("coherent dispatch", halves, dispatch="coherent"),
        Setting("planned from intent, judged on law", [(intent, law)]),
        Setting("planned from law, judged on intent", [(law, intent)]),
    ):
        console.print(_table(setting))


def _table(setting: Setting) -> Table:
    table = Table(
        title=f"DeepSeek-V2-Lite on {GPUS} GPUs, {setting.title}, {setting.dispatch}; held out, "
        f"median of {len(setting.pairs)}; ratios to eplb",
        title_justify="left",
    )
    for name in ("", "GPUs/token", "ratio", "worst", "balance", "less eplb's", "worst", "hops"):
        table.add_column(name, justify="right")
    for name in ("ratio", "step, ms", "ratio", "solved, ms"):
        table.add_column(name, justify="right")
    base = None
    for name in _names():
        figures = np.array([_figures(name, setting, *pair) for pair in setting.pairs])
        base = figures if base is None else base
        fanout, balance, hops, step_ms, solve_ms = np.median(figures, axis=0)
        ratio, less = figures / base, figures[:, 1] - base[:, 1]
        cells = [
            f"{fanout:.3f}", f"{np.median(ratio[:, 0]):.3f}", f"{ratio[:, 0].max():.3f}",
            f"{balance:.4f}", f"{np.median(less):+.4f}", f"{less.min():+.4f}",
            f"{hops:.2f}", f"{np.median(ratio[:, 2]):.3f}",
            f"{step_ms:.2f}", f"{np.median(ratio[:, 3]):.3f}", f"{solve_ms:.0f}",
        ]  # fmt: skip
        table.add_row(name, *cells)
    return table


def _names() -> tuple[str, ...]:
    return (*NAMES, "vllm") if find_spec("vllm") else NAMES


def _figures(name: str, setting: Setting, fit: Trace, judged: Trace) -> list[float]:
    """Fan-out, balancedness, hops, step and solving time, both in ms."""
    shape = model.preset("deepseek-v2-lite")
    problem = Problem(
        model=shape,
        topology=topology.preset("h100").resized(GPUS),
        profile=of_trace(fit),
        slots=shape.experts + setting.redundant,
        objective=Objective(setting.dispatch),
        trace=fit,
    )
    begun = time.perf_counter()
    placement = _placement(name, problem)
    solve_ms = (time.perf_counter() - begun) * 1e3
    found = score(problem, placement, judged)
    assert found.fanout_gpus is not None
    assert found.hops is not None
    return [found.fanout_gpus, found.balancedness, found.hops, found.step_s * 1e3, solve_ms]


def _placement(name: str, problem: Problem) -> Placement:
    if name == "vllm":
        import torch
        from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

        weight = torch.from_numpy(problem.profile.load.copy())
        gpus = problem.topology.gpus
        table = DefaultEplbPolicy.rebalance_experts(weight, problem.slots, 1, 1, gpus)
        return problem.placement(table.numpy())
    solution = solve(problem, name)
    assert isinstance(solution, Solution)
    return solution.placement
