"""A controller under load: 512 agents that push, register and watch for plans, all at once.

A decision is timed by itself afterwards.
"""

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from rich.table import Table

from bench.crowd import (
    AGENTS,
    EVERY_S,
    EXPERTS,
    LAYERS,
    POOL,
    RANKS,
    SLOTS,
    TOP_K,
    Seen,
    agents,
    load,
)
from bench.replan import planned, problem
from bench.served import POLICY, linear, process, serve
from bench.timing import console
from controller.engines.planning import answer
from controller.fleet.pools import Group
from controller.fleet.windows import Delta, Window
from controller.policies import policy
from controller.policies.rebalance import rebalance
from placer import model
from placer.placement import Placement
from placer.problem import Problem

LASTS_S = 60.0
OFFER_S = 20.0  # after the first push
ROUNDS = 9


def run() -> None:
    before, after = linear(), planned(problem(load(0)))
    busy = os.getloadavg()[0]
    with TemporaryDirectory() as folder, process(serve, before, Path(folder)) as controller:
        port = controller.recv()
        with process(agents, port, LASTS_S) as clients:
            clients.recv()  # all are registered
            clients.send("go")
            sizes, offered_s = _watch(controller, after)
            seen: Seen = clients.recv()
            controller.send(("counted", None))
            counted: tuple[int, int] = controller.recv()
    _tell(seen, counted, sizes, offered_s, busy)
    for name, current in (("a running plan", planned(problem(load(0)))), ("linear", before)):
        took_ms, busy_ms, decided = _decision(current)
        console.print(
            f"A decision from {name}: {took_ms:.0f} ms, {busy_ms:.0f} ms of work on two threads "
            f"(load {os.getloadavg()[0]:.1f}): {decided}"
        )


def _watch(controller: Connection, after: Placement) -> tuple[dict[int, float], float]:
    """MB of the controller by seconds of load, and when the offer was made."""
    begun, sizes, offered_s = time.monotonic(), {}, 0.0
    for at in (10, OFFER_S, 30, LASTS_S):
        time.sleep(max(begun + at - time.monotonic(), 0))
        if at == OFFER_S:
            controller.send(("offer", after))
            offered_s = controller.recv()
            continue
        controller.send(("size", None))
        sizes[int(at)] = controller.recv()
    return sizes, offered_s


def _tell(
    seen: Seen, counted: tuple[int, int], sizes: dict[int, float], offered_s: float, busy: float
) -> None:
    table = Table(
        title=f"{AGENTS} agents, {LAYERS} x {EXPERTS} counters of two phases and a registration "
        f"each {EVERY_S:g} s for {LASTS_S:g} s (load of this host before: {busy:.1f})",
        title_justify="left",
    )
    for name in ("", "measured", "limit"):
        table.add_column(name, justify="right")
    pushed_ms, registered_ms = (
        np.percentile(np.array(times) * 1e3, [50, 99, 100])
        for times in (seen.acknowledged_s, seen.registered_s)
    )
    arrived_ms = np.percentile((np.array(seen.arrived) - offered_s) * 1e3, [50, 99, 100])
    lost = seen.tokens - counted[0], seen.tokens * LAYERS * TOP_K - counted[1]
    percentiles = "{:.1f} / {:.1f} / {:.1f} ms".format
    table.add_row("pushes, tokens sent", f"{seen.pushes:,}, {seen.tokens:,}", "")
    table.add_row("tokens, choices lost", "{:,}, {:,}".format(*lost), "0, 0")
    table.add_row("pushes refused", str(len(seen.refused)), "0")
    table.add_row("acknowledged, p50 / p99 / longest", percentiles(*pushed_ms), "p99 100 ms")
    table.add_row("registered, p50 / p99 / longest", percentiles(*registered_ms), "")
    table.add_row("watchers that got the plan", f"{len(seen.arrived)}", f"{AGENTS}")
    table.add_row("plan at the watcher, p50 / p99 / last", percentiles(*arrived_ms), "1,000 ms")
    for at, size in sizes.items():
        table.add_row(f"controller's memory after {at} s", f"{size:.0f} MB", "800 MB")
    console.print(table)


# A decision.


def _decision(current: Placement) -> tuple[float, float, str]:
    """From a pool's windows, of two halves and two phases, to what is done: median ms, warm, by the
    clock and of the processor. A tenth of the traffic is another than ``current`` was made for."""
    pool = Group(POOL, model.preset("deepseek-v3"), RANKS, SLOTS, {"engine": []}, {})
    for phase in ("prefill", "decode"):
        window = pool.windows[phase] = Window(POLICY.window_s, 0.0)
        for at in range(40):
            other = 7 if at % 10 == 0 else 0
            delta = Delta(phase, TOP_K, 16_384, 9, load(at, kind=other).astype("<u4"))
            window.add(delta, at * POLICY.window_s / 45)
    times, works = [], []
    for _ in range(ROUNDS + 1):
        begun, worked = time.perf_counter(), time.process_time()
        profile = pool.profile("mixed", POLICY.window_s * 0.9)
        assert profile is not None
        task = Problem(
            pool.model, POLICY.hardware(RANKS), profile, SLOTS, POLICY.objective, current
        )
        found = answer(task, POLICY.optimizer)
        decided = rebalance(policy.Seen(found, policy.Past(), POLICY, 0.0))
        times.append((time.perf_counter() - begun) * 1e3)
        works.append((time.process_time() - worked) * 1e3)
    return median(times[1:]), median(works[1:]), f"{decided.outcome}: {decided.reason}"
