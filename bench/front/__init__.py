"""A front beside vLLM's router (vllm-router, Rust): the same clients, engines and connections.

    ROUNDS=5 SECONDS=3 python -m bench front

Requests a second of short streams with 32 connections, CPU time of the front's process for each,
and what it adds to the 50th and 99th percentile of a paced load of half of what vLLM's router can
do; then 10,000 requests through two scalings and a killed engine.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from bench.front import endurance, routers
from bench.front.load import Ask, Told
from bench.timing import console

ROUNDS, SECONDS = int(os.environ.get("ROUNDS", "5")), float(os.environ.get("SECONDS", "3"))
CONNECTIONS, PACED = 32, 128
TOKENS = 8
PROMPT = list(range(64))
BODIES = {
    "sampled": {"model": "bench", "prompt": PROMPT, "max_tokens": TOKENS, "stream": True},
    "greedy": {
        "model": "bench", "prompt": PROMPT, "max_tokens": TOKENS, "stream": True, "temperature": 0,
    },
}  # fmt: skip


def run() -> None:
    with TemporaryDirectory() as folder:
        beside(Path(folder))
    endurance.run()


def beside(folder: Path) -> None:
    """What it is compared with is installed into ``folder``."""
    engine, port, other = routers.a_port(), routers.a_port(), routers.a_port()
    with routers.process(routers.upstream(engine), engine):
        fronts = {"placer front": (routers.ours(port, [engine]), port)}
        try:
            fronts["vllm-router"] = routers.theirs(folder, other, [engine]), other
        except routers.AbsentError as error:
            console.print(f"vLLM's router is not compared: {error}")
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        rate = 0.0
        for kind, body in BODIES.items():
            for turn in range(ROUNDS + 1):  # the first one warms up
                direct = loaded(engine, body, PACED, rate) if rate else None
                for name, (command, at) in fronts.items():
                    with routers.process(command, at) as pid:
                        figures = one_round(pid, at, body, rate, direct)
                    if turn:
                        found.setdefault((name, kind), []).append(figures)
                last = [them[-1]["rate"] for (_, one), them in found.items() if one == kind]
                rate = rate or (last[-1] / 2 if last else 0.0)
    show(found, rate)


def one_round(
    pid: int, port: int, body: dict[str, Any], rate: float, direct: Told | None
) -> dict[str, float]:
    """direct: the same paced load without a front"""
    loaded(port, body, CONNECTIONS, 0.0, 0.5)
    before = routers.cpu_s(pid)
    burst = loaded(port, body, CONNECTIONS)
    used = routers.cpu_s(pid) - before
    count = burst.answered + burst.failed
    found = {"rate": burst.answered / burst.seconds, "cpu_us": used / max(count, 1) * 1e6,
             "failed": burst.failed}  # fmt: skip
    if direct is not None:
        before = routers.cpu_s(pid)
        paced = loaded(port, body, PACED, rate)
        found["paced_us"] = (routers.cpu_s(pid) - before) / max(len(paced.latency_ms), 1) * 1e6
        found["failed"] += paced.failed
        for name, at in (("p50", 49), ("p99", 98)):
            own, none = (quantiles(one.latency_ms, n=100)[at] for one in (paced, direct))
            found[name] = own - none
    return found


def loaded(
    port: int, body: dict[str, Any], connections: int, rate: float = 0.0, seconds: float = SECONDS
) -> Told:
    ask = Ask(port, json.dumps(body), seconds, connections, rate)
    command = [sys.executable, "-m", "bench.front.load"]
    # Unbuffered, a signal would cut what is written.
    whole = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        command,
        input=json.dumps(asdict(ask)),
        check=True,
        capture_output=True,
        text=True,
        env=whole,
    )
    return Told(**json.loads(done.stdout))


def show(found: dict[tuple[str, str], list[dict[str, float]]], rate: float) -> None:
    columns = ("rate", "cpu_us", "paced_us", "p50", "p99", "failed")
    table = Table(
        "", "", "requests/s", "CPU us a request", "paced", "p50 + ms", "p99 + ms", "failed",
        title=f"streams of {TOKENS} events, {CONNECTIONS} connections; paced at {rate:,.0f}/s",
    )  # fmt: skip
    for (name, kind), rounds in found.items():
        told = []
        for column in columns:
            values = [one[column] for one in rounds if column in one]
            told.append(f"{median(values):,.2f}" if values else "-")
        table.add_row(name, kind, *told)
    console.print(table)
