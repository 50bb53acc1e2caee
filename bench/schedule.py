"""Transfer schedules: ours, its lower bound and first-fit batching, on random and on real changes.

First fit is written from the description of vLLM's migration scheduler: the receivers of an expert
are shared out evenly among its holders in order of rank; an expert layer's copies between the same
two ranks go together; each such group goes into the first batch of its layer that uses neither of
its ranks, in whichever direction; batches and layers follow one another. "Both ways" is kinder:
single copies over all layers, and ranks that send and receive at the same time.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from bench.timing import console
from placer import model, topology
from placer.arrays import FloatArray
from placer.files.routing import read_trace
from placer.model import ModelShape
from placer.optimizers.eplb import optimize
from placer.placement import Placement
from placer.problem import Problem
from placer.profile import Profile
from placer.schedule import Budget, MigrationSchedule, faults, match_slots, schedule
from placer.topology import Topology

DATA = Path(os.environ.get("PLACER_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
Copy = tuple[int, int, int]  # layer, source, gpu


class Change(NamedTuple):
    name: str
    shape: ModelShape
    machine: Topology
    before: Placement
    after: Placement


# Experts in flight a rank, experts in flight a node, scratch slots.
BUDGETS = ((1, None, 1), (1, None, 2), (1, None, 4), (4, None, 8), (1, 4, 8))


def run() -> None:
    changes = list(_changes())
    table = Table(title="schedules: one expert in flight a rank, each way; 8 scratch slots a GPU")
    times = ("ours", "both ways", "first fit")
    for name in ("change", "copies", "bound, ms", *times, "solved in, s"):
        table.add_column(name, justify="right")
    for change in changes:
        size = change.shape.expert_bytes
        ours, seconds = _solved(change, Budget(size))
        copies = evenly_shared(change.before, ours.after)
        others = (kind(copies, size, change.machine) for kind in (both_ways_s, first_fit_s))
        table.add_row(
            change.name,
            str(ours.copies),
            f"{ours.lower_bound_s * 1e3:.1f}",
            *(f"{value / ours.lower_bound_s:.3f}x" for value in (ours.makespan_s, *others)),
            f"{seconds:.2f}",
        )
    console.print(table)
    table = Table(title="other budgets: makespan / bound (solved in)")
    budget = ("experts a rank", "experts a node", "scratch slots")
    for name in (*budget, changes[0].name, changes[2].name):
        table.add_column(name, justify="right")
    for experts, of_node, scratch in BUDGETS:
        cells = []
        for change in (changes[0], changes[2]):
            size = change.shape.expert_bytes
            node_bytes = None if of_node is None else of_node * size
            ours, seconds = _solved(change, Budget(experts * size, node_bytes, scratch))
            cells.append(f"{ours.makespan_s / ours.lower_bound_s:.3f}x ({seconds:.1f} s)")
        table.add_row(str(experts), str(of_node or "any"), str(scratch), *cells)
    console.print(table)


def _solved(change: Change, budget: Budget) -> tuple[MigrationSchedule, float]:
    """The schedule, replayed, and the seconds that matching and scheduling took."""
    _, shape, machine, before, after = change
    begun = time.perf_counter()
    matched = match_slots(before, after, "layers")
    found = schedule(before, matched, shape.expert_bytes, machine, budget)
    seconds = time.perf_counter() - begun
    if broken := faults(found, before, matched, shape.expert_bytes, budget):
        raise RuntimeError(f"{change.name}: {broken[0]}")
    return found, seconds


def _changes() -> Iterator[Change]:
    shape, machine = model.preset("deepseek-v3"), topology.preset("h100").resized(32, 4)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        loads = rng.lognormal(0, 1, (2, shape.layers, shape.experts))
        loads *= shape.top_k / loads.sum(axis=2, keepdims=True)  # of a token
        for name, groups in (("anywhere", 1), ("groups stay together", shape.groups)):
            before, after = (_eplb(load, replace(shape, groups=groups), machine) for load in loads)
            yield Change(f"random {seed}, {name}", shape, machine, before, after)
        exchanged = _exchanged(before, 0.1, rng)
        yield Change(f"random {seed}, 10% of slots", shape, machine, before, exchanged)
    shape = model.preset("deepseek-v2-lite")
    traces = sorted((DATA / "deepseek-v2-lite-routing").glob("*.npz"))
    if len(traces) < 2:
        console.print(f"schedule: real changes left out, no DeepSeek-V2-Lite traces in {DATA}")
        return
    name = " to ".join(path.stem for path in traces[:2])
    for gpus, nodes in ((8, 1), (16, 2)):
        machine = topology.preset("h100").resized(gpus, nodes)
        loads = np.stack([read_trace(path, shape).load for path in traces[:2]])
        before, after = (_eplb(load, shape, machine) for load in loads)
        yield Change(f"{name}, {gpus} GPUs", shape, machine, before, after)


def _eplb(load: FloatArray, shape: ModelShape, machine: Topology) -> Placement:
    """With an eighth of the experts, or what fills the GPUs, again as redundant slots."""
    slots = -(-shape.experts * 9 // 8 // machine.gpus) * machine.gpus
    tokens = float(load[0].sum()) / shape.top_k
    profile = Profile(load.astype(np.float64), shape.top_k, tokens, sequences=1)
    return optimize(Problem(shape, machine, profile, slots)).placement


def _exchanged(start: Placement, share: float, rng: np.random.Generator) -> Placement:
    """Pairs of slots exchange their experts, ``share`` of all slots in each layer."""
    table = start.physical_to_logical.copy()
    for row in table:
        pairs = rng.permutation(start.slots)[: int(start.slots * share) // 2 * 2].reshape(2, -1)
        row[pairs] = row[pairs[::-1]]
    return Placement(table, start.experts, start.gpus, start.nodes)


def evenly_shared(before: Placement, after: Placement) -> list[Copy]:
    """Layer after layer and expert after expert, each with its holders and receivers in order."""
    had, wanted = before.copies > 0, after.copies > 0
    copies = []
    for layer, expert in np.argwhere((wanted & ~had).any(axis=2)).tolist():
        holders = np.nonzero(had[layer, expert])[0]
        receivers = np.nonzero(wanted[layer, expert] & ~had[layer, expert])[0]
        each, rest = divmod(len(receivers), len(holders))
        senders = np.r_[np.repeat(holders, each), holders[:rest]]
        pairs = zip(senders.tolist(), receivers.tolist(), strict=True)
        copies += [(layer, source, gpu) for source, gpu in pairs]
    return copies


def first_fit_s(copies: Sequence[Copy], expert_bytes: int, machine: Topology) -> float:
    total = 0.0
    for _, of_layer in groupby(copies, key=lambda copy: copy[0]):
        groups: dict[tuple[int, int], float] = {}
        for _, source, gpu in of_layer:
            seconds = _seconds(source, gpu, expert_bytes, machine)
            groups[source, gpu] = groups.get((source, gpu), 0.0) + seconds
        busy: list[set[int]] = []
        lasts: list[float] = []
        for ranks, seconds in groups.items():
            batch = next((i for i, used in enumerate(busy) if used.isdisjoint(ranks)), len(busy))
            if batch == len(busy):
                busy.append(set())
                lasts.append(0.0)
            busy[batch].update(ranks)
            lasts[batch] = max(lasts[batch], seconds)
        total += sum(lasts)
    return total


def both_ways_s(copies: Sequence[Copy], expert_bytes: int, machine: Topology) -> float:
    sends: list[set[int]] = [set() for _ in range(machine.gpus)]  # by rank, the batches it is in
    receives: list[set[int]] = [set() for _ in range(machine.gpus)]
    lasts: dict[int, float] = {}
    for _, source, gpu in copies:
        taken = sends[source] | receives[gpu]
        batch = next(i for i in range(len(taken) + 1) if i not in taken)
        sends[source].add(batch)
        receives[gpu].add(batch)
        seconds = _seconds(source, gpu, expert_bytes, machine)
        lasts[batch] = max(lasts.get(batch, 0.0), seconds)
    return sum(lasts.values())


def _seconds(source: int, gpu: int, expert_bytes: int, machine: Topology) -> float:
    size = machine.gpus_per_node
    link = machine.local if source // size == gpu // size else machine.network
    return expert_bytes / link.bytes_per_s
