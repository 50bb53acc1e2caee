"""joint against the better of linear and eplb, by the score, on what it was planned from."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
from rich.table import Table

from bench.timing import console
from placer import model, planner, topology
from placer.cost import score
from placer.files.routing import read_trace
from placer.model import ModelShape
from placer.objective import DISPATCHES, STEP_TOKENS_PER_GPU, Dispatch, Objective
from placer.optimizers import optimizer
from placer.plan import Solution
from placer.planner import solve
from placer.problem import Problem
from placer.profile import Profile, of_trace
from placer.trace import Trace, concatenate

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PLACER_TEST_DATA", ROOT.parent / "shared" / "data"))
TINY = ROOT / "examples" / "tiny_moe" / "traces"
GPUS, REDUNDANT = (2, 4, 8, 16, 32), (0, 32)
TOPOLOGIES = ("h100", "gb200-nvl72", "a100", "pcie-l40s", "ascend-910b")
PHASES = ("prefill", "decode")
SPLITS = 5
TOLD = 50  # combinations between lines of progress
EQUAL = 1e-9  # a ratio above 1 by less is rounding


@dataclass(frozen=True)
class Recording:
    name: str
    shape: ModelShape
    trace: Trace
    profile: Profile


@dataclass(frozen=True)
class Setting:
    """One combination of the matrix."""

    recording: str
    gpus: int
    hardware: str
    dispatch: Dispatch
    phase: str
    redundant: int

    def __str__(self) -> str:
        return (
            f"{self.recording}, {self.gpus} {self.hardware}, {self.dispatch}, {self.phase}, "
            f"{self.redundant} redundant"
        )


@dataclass(frozen=True)
class Outcome:
    """Ratios of step times to the better of linear and eplb: of what ``solve`` returns, and of
    joint's own search; ``instead`` names the baseline that was returned."""

    setting: Setting
    solved: float
    searched: float
    instead: str


def run() -> None:
    """All combinations, or every n-th with MATRIX=n; then held out, with HELD_OUT=n."""
    known = recordings()
    step = int(os.environ.get("MATRIX", "1"))
    begun, some = time.perf_counter(), list(settings(known))[::step]
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor() as pool:
        for one in pool.map(outcome, some):
            outcomes.append(one)
            if not len(outcomes) % TOLD:
                ratios = [found.solved for found in outcomes]
                print(f"{len(outcomes)} of {len(some)}: mean {np.mean(ratios):.4f}", flush=True)
    console.print(f"{len(outcomes)} combinations in {time.perf_counter() - begun:.0f} s")
    console.print(_table(outcomes))
    for one in sorted(outcomes, key=lambda found: -found.searched)[:10]:
        if one.searched > 1 + EQUAL:
            console.print(f"  search {one.searched:.4f}, solve {one.solved:.4f}: {one.setting}")
    if step := int(os.environ.get("HELD_OUT", "0")):
        console.print(_held_out(known, list(settings(known))[::step]))


@cache
def recordings() -> dict[str, Recording]:
    """By name; read once, also for the processes that are forked afterwards."""
    return {one.name: one for one in _read()}


def _read() -> Iterator[Recording]:
    lite, oss = model.preset("deepseek-v2-lite"), model.preset("gpt-oss-20b")
    paths = [(lite, path) for path in sorted((DATA / "deepseek-v2-lite-routing").glob("*.npz"))]
    decode = (DATA / "gpt-oss-20b-decode" / f"{name}.npz" for name in ("stem", "humanities"))
    paths += [(oss, path) for path in decode if path.exists()]
    for shape, path in paths:
        trace = read_trace(path, shape)
        yield Recording(path.stem, shape, trace, of_trace(trace))
    shape = ModelShape("tiny_moe", 6, 16, 2, 128, 64)
    tiny = concatenate([read_trace(path, shape) for path in sorted(TINY.glob("*.npz"))])
    yield Recording("tiny_moe", shape, tiny, of_trace(tiny))


def settings(known: dict[str, Recording]) -> Iterator[Setting]:
    every = product(known, GPUS, TOPOLOGIES, DISPATCHES, PHASES, REDUNDANT)
    for name, gpus, hardware, dispatch, phase, redundant in every:
        slots = known[name].shape.experts + redundant
        if slots % gpus == 0 and slots // gpus <= known[name].shape.experts:
            yield Setting(name, gpus, hardware, dispatch, phase, redundant)


def problem(recording: Recording, setting: Setting) -> Problem:
    node = topology.preset(setting.hardware)
    nodes = max(setting.gpus // node.gpus, 1)
    return Problem(
        model=recording.shape,
        topology=node.resized(setting.gpus, nodes),
        profile=recording.profile,
        slots=recording.shape.experts + setting.redundant,
        objective=Objective(
            setting.dispatch,
            tokens_per_gpu=STEP_TOKENS_PER_GPU[setting.phase],
            memory_share=1.0,
        ),
        trace=recording.trace,
    )


def outcome(setting: Setting) -> Outcome:
    task = problem(recordings()[setting.recording], setting)
    found = {name: optimizer(name)(task) for name in ("linear", "eplb", "joint")}
    best = min(score(task, found[name].placement, task.trace).step_s for name in ("linear", "eplb"))
    searched = found["joint"].placement
    with mock.patch.object(planner, "optimizer", lambda name: lambda _: found[name]):  # once
        solution = solve(task, "joint")
    if not isinstance(solution, Solution):
        raise SystemExit(f"{setting}: {solution.reason}")
    return Outcome(
        setting,
        score(task, solution.placement, task.trace).step_s / best,
        score(task, searched, task.trace).step_s / best,
        solution.instead,
    )


def _table(outcomes: list[Outcome]) -> Table:
    table = Table(
        title="joint's step time over the better of linear's and eplb's, on its own fit",
        title_justify="left",
    )
    for name in ("", "combinations", "solve: mean", "worst", "losses"):
        table.add_column(name, justify="right")
    for name in ("search: mean", "worst", "losses", "a baseline returned"):
        table.add_column(name, justify="right")
    for name in (*DISPATCHES, "all"):
        some = [one for one in outcomes if name in ("all", one.setting.dispatch)]
        if not some:
            continue
        solved, searched = (
            np.array([getattr(one, field) for one in some]) for field in ("solved", "searched")
        )
        instead = sum(bool(one.instead) for one in some)
        cells = [name, str(len(some))]
        for ratios in (solved, searched):
            losses = int((ratios > 1 + EQUAL).sum())
            cells += [f"{ratios.mean():.4f}", f"{ratios.max():.4f}", f"{losses}"]
        table.add_row(*cells, f"{instead} ({instead / len(some):.1%})")
    return table


def _held_out(known: dict[str, Recording], some: list[Setting]) -> Table:
    """Planned from one half of the sequences and judged on the other, by recording."""
    table = Table(
        title=f"Held out, {SPLITS} splits: joint's step over the better of linear's and eplb's",
        title_justify="left",
    )
    for name in ("", "combinations", "mean", "worst", "over 1.005 and two standard errors"):
        table.add_column(name, justify="right")
    for name, recording in known.items():
        mine = [one for one in some if one.recording == name]
        means, beyond = [], []
        for setting in mine:
            ratios = np.array([_split_ratio(recording, setting, seed) for seed in range(SPLITS)])
            error = float(ratios.std(ddof=1)) / SPLITS**0.5
            means.append(float(ratios.mean()))
            if means[-1] > 1.005 + 2 * error:
                beyond.append(f"{setting} {means[-1]:.3f}")
        if mine:
            cells = [name, str(len(mine)), f"{np.mean(means):.4f}", f"{max(means):.4f}"]
            table.add_row(*cells, "; ".join(beyond) or "none")
    return table


def _split_ratio(recording: Recording, setting: Setting, seed: int) -> float:
    fit, judged = recording.trace.split(0.5, seed)
    task = problem(Recording(recording.name, recording.shape, fit, of_trace(fit)), setting)
    solution = solve(task, "joint")
    if not isinstance(solution, Solution):
        raise SystemExit(f"{setting}: {solution.reason}")
    best = min(
        score(task, optimizer(name)(task).placement, judged).step_s for name in ("linear", "eplb")
    )
    return score(task, solution.placement, judged).step_s / best
