"""What memory a change of width needs, and how fast memory appears elsewhere."""

import ctypes
import os
from statistics import median
from time import perf_counter

import numpy as np
from rich.table import Table

from bench.elastic.engines import MB, ROUNDS, Model, an_engine, commands, nearest, slots_of
from bench.timing import console
from controller.elastic.arena import Layout
from controller.elastic.hmm import Report
from placer.memory.device import Run
from placer.memory.memfd import Memfd
from placer.memory.ranges import Range


def peaks(model: Model) -> None:
    """By the page table at the fullest moment, and the KV cache that is reserved."""
    with an_engine(model, 3) as engine:
        layout = engine.devices.layout
        fixed = layout.dense_size + layout.seats * layout.seat_size
        after = nearest(engine.placement, 4)
        for command in list(commands(engine, after, 1))[:3]:
            engine.carry_out(command)
        held = [engine.devices.ask(device, Report()) for device in (*engine.order, 3)]
        ours = [sum(entry >= 0 for entry in one.table) * layout.page_size + fixed for one in held]
        spare = sum(one.resident_bytes for one in held) - sum(ours)
    table = Table(title="peak memory, 3 -> 4 ranks, MB", title_justify="left")
    for name in ("", "largest device", "sum"):
        table.add_column(name, justify="right" if name else "left")
    three, four = ([_arena(after.layers, ranks, layout)] * ranks for ranks in (3, 4))
    cold = [max(three[0], four[0])] * 3 + four[3:]  # a device's peak: before, or after
    rows = {"ours": ours, "cold restart": cold, "extravagant": [*three, *four]}
    for name, sizes in rows.items():
        table.add_row(name, f"{max(sizes) / MB:.1f}", f"{sum(sizes) / MB:.1f}")
    console.print(table)
    second = sum(rows["extravagant"])
    largest = max(ours) / max(rows["cold restart"]) - 1
    console.print(
        f"  the largest {largest:+.1%} over a cold restart's (the paper +2 to 3%), the sum "
        f"{1 - sum(ours) / second:.1%} under extravagant's (35 to 40%); resident spare beside: "
        f"{spare / MB:.1f} MB, with it {1 - (sum(ours) + spare) / second:.1%} under"
    )


def _arena(layers: int, ranks: int, layout: Layout) -> int:
    """Bytes in use of each device of an engine that starts with so many ranks."""
    pages = layers * slots_of(ranks) // ranks * layout.page_size
    return pages + layout.dense_size + layout.seats * layout.seat_size


def primitives() -> None:
    """Of memory: to map one page elsewhere, and a gigabyte in another place."""
    device, page = Memfd(), 98_304
    arena = device.create(2**30)
    everything = Range(device, [Run(arena, 0, 2**30)])
    everything.array()[::4096] = 1
    blocks = os.fstat(arena).st_blocks
    one = device.reserve(page)
    times = []
    for at in range(2000):
        begun_s = perf_counter()
        device.map(one, Run(arena, at * page, page))
        times.append((perf_counter() - begun_s) * 1e6)
    attaches = []
    for _ in range(ROUNDS):
        begun_s = perf_counter()
        again = Range(device, [Run(arena, 0, 2**30)])
        attaches.append((perf_counter() - begun_s) * 1e3)
        same = _frame(again.address) == _frame(everything.address)
        again.close()
    p50, p99 = np.percentile(times, [50, 99])
    console.print(
        f"remap of an expert: {p50:.0f} us, p99 {p99:.0f} us (limit 100); blocks before and after "
        f"{blocks} and {os.fstat(arena).st_blocks}, the same frame behind both: {same}; attach of "
        f"1 GB: {median(attaches):.2f} ms (limit 2)"
    )
    device.release(one, page)
    everything.close()
    os.close(arena)


def _frame(address: int) -> int:
    """The physical page behind an address that was touched; 0 for who is not root."""
    ctypes.string_at(address, 1)
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(address // 4096 * 8)
        return int.from_bytes(file.read(8), "little") & (2**55 - 1)
