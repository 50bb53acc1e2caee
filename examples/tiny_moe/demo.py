"""The controller at work: two engines of two ranks serve the example model as its traffic changes.

    python examples/tiny_moe/demo.py     # two minutes on 2 cores; `make demo` runs it

Code is served first, then tables, whose experts are others. The controller sees what the routers
choose, holds or plans, and moves experts between the processes while they serve. Then it gives the
engines a third rank, and takes it back, beside the same traffic. Every request's tokens are held
against those that the idle engines gave before anything moved. They go through `placer front`,
which looks up in tables of sampled requests which rank a prompt's tokens are at home on.
"""

import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import ray
from corpus import split
from rich.console import Console
from rich.table import Table

from controller.assemble import Setup
from controller.config import PoolPolicy, Traces, read_config
from controller.engines.ray_actor import Serving, start_engine
from controller.hosts.ray import end, launch
from controller.server.security import Listening
from placer.files.specs import read_topology
from placer.parallel import connect
from placer.v1.fleet_pb2 import (
    OPERATION_PHASE_RETURNING,
    OPERATION_PHASE_RUNNING,
    OPERATION_PHASE_SUCCEEDED,
    HistoryRequest,
    OperationsRequest,
    ScaleToRequest,
    StatusRequest,
)
from placer.v1.fleet_pb2_grpc import FleetServiceStub, LedgerServiceStub
from placer.v1.placement_pb2 import WatchRequest
from placer.v1.placement_pb2_grpc import PlacementServiceStub

HERE = Path(__file__).parent
RANKS, MORE_RANKS, SLOTS, ENGINES, CLIENTS = 2, 3, 20, 2, 8
PROMPT, ANSWER, PROMPTS = 96, 48, 24
PHASE_S = 32.0

# Decisions every few seconds, on little traffic: fleets take minutes, and a demo has none.
POLICY = PoolPolicy(
    topology=read_topology(str(HERE / "cpus.yaml")),
    mode="automatic",
    window_s=12.0,
    least_tokens=4_000,
    cooldown_s=5.0,
    max_moved=0.3,
    traces=Traces(requests=300, kept_s=60.0, token_ids=True),
)
EVERY_S = 3.0
POOL = "tiny"

out = Console(highlight=False, soft_wrap=True)
Answers = dict[tuple[int, ...], list[int]]


class Traffic:
    """Clients of a front, each of which asks one request after another. front: its host:port"""

    def __init__(self, front: str, answers: Answers) -> None:
        self.front, self.answers = front, answers
        self.domain: list[list[int]] = []
        self.served = self.failed = self.different = 0
        self.longest_gap_s = 0.0
        self.is_over = False
        self._threads = [threading.Thread(target=self._ask, args=(at,)) for at in range(CLIENTS)]

    def start(self, domain: list[list[int]]) -> None:
        self.domain = domain
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.is_over = True
        for thread in self._threads:
            thread.join()

    def _ask(self, at: int) -> None:
        for turn in itertools.count(at):
            if self.is_over:
                return
            prompt = self.domain[turn * 7 % len(self.domain)]
            try:
                tokens, gap_s = self._stream(prompt)
            except Exception as error:
                self.failed += 1
                out.print(f"a request failed: {error}")
                continue
            self.served += 1
            self.different += tokens != self.answers[tuple(prompt)]
            self.longest_gap_s = max(self.longest_gap_s, gap_s)

    def _stream(self, prompt: list[int]) -> tuple[list[int], float]:
        """The tokens, and the longest time between two of them."""
        asked = {"prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "stream": True}
        connection = HTTPConnection(self.front, timeout=60)
        body = json.dumps({**asked, "return_token_ids": True})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        tokens: list[int] = []
        longest_s, came_s = 0.0, None
        for line in connection.getresponse():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            tokens += event["choices"][0]["token_ids"]
            last_s, came_s = came_s, time.monotonic()
            longest_s = max(longest_s, came_s - (last_s or came_s))
        connection.close()
        return tokens, longest_s


@contextmanager
def front(controller: str) -> Iterator[str]:
    """Its host:port."""
    command = [sys.executable, "-m", "placer.cli.main", "front", "--listen", "127.0.0.1:0"]
    command += ["--controller", controller, "--pool", POOL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"127\.0\.0\.1:\d+", process.stdout.readline())
        if found is None:
            raise SystemExit("the front did not start: see above")
        yield found[0]
        process.terminate()


def prompts(domain: str) -> list[list[int]]:
    """Held-out text, as byte ids."""
    text = b"\n\n".join(split(domain)[1])
    starts = np.linspace(0, len(text) - PROMPT, PROMPTS).astype(int)
    return [list(text[start : start + PROMPT]) for start in starts]


def tell(channel: grpc.Channel, begun_s: float) -> None:
    """Print what the controller writes down, as it does."""
    shown = ""
    for change in PlacementServiceStub(channel).Watch(WatchRequest()):
        record = change.record
        if record.kind == "decision" and record.reason != shown:
            shown = record.reason
            out.print(f"[dim]{time.monotonic() - begun_s:5.1f} s[/]  {record.reason}")
        if record.kind == "plan" and record.reason.startswith("op-"):
            at_s = time.monotonic() - begun_s
            out.print(f"[dim]{at_s:5.1f} s[/]  [bold]{record.id}: {record.reason}[/]")


def watch(channel: grpc.Channel, seconds: float) -> Iterator[float]:
    """Balancedness on today's traffic, a sample a second."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        time.sleep(1)
        (pool,) = FleetServiceStub(channel).Status(StatusRequest(), timeout=10).pools
        if pool.balancedness:
            yield pool.balancedness


def scale(channel: grpc.Channel, ranks: int) -> None:
    """Have the controller change the engines' width, and tell what it took."""
    fleet = FleetServiceStub(channel)
    request = ScaleToRequest(pool=POOL, ranks=ranks, idempotency_key=f"demo-{ranks}")
    while True:
        try:
            operation = fleet.ScaleTo(request, timeout=60).operation
            break
        except grpc.RpcError as error:  # experts are being moved: one change at a time
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            time.sleep(0.5)
    asked = OperationsRequest(operation_id=operation.id)
    while operation.phase in (OPERATION_PHASE_RUNNING, OPERATION_PHASE_RETURNING):
        time.sleep(0.1)
        (operation,) = fleet.Operations(asked, timeout=10).operations
    if operation.phase != OPERATION_PHASE_SUCCEEDED:
        raise SystemExit(f"{operation.id}: {operation.reason}")
    expected = operation.resize
    copied, p2p = operation.copied_bytes / 1e6, ENGINES * expected.p2p_bytes / 1e6
    out.print(
        f"         {operation.id}: {expected.ranks_before} -> {ranks} ranks, engine after engine: "
        f"{copied:.1f} MB copied ({p2p:.1f} of experts and dense weights expected), longest pause "
        f"{operation.longest_pause_s * 1e3:.0f} ms"
    )


def main() -> None:
    begun_s = time.monotonic()
    connect("local", log_to_driver=False, object_store_memory=200 * 2**20)
    with TemporaryDirectory() as folder:
        config = replace(read_config(None), default=POLICY, every_s=EVERY_S)
        listening = Listening("127.0.0.1:0")
        handle, port = launch(Setup(config, listening, Path(folder) / "placer.db"))
        address = f"127.0.0.1:{port}"
        engines = [
            start_engine(
                Serving(
                    POOL, f"engine-{at}", HERE / "model", RANKS, SLOTS, address,
                    smallest=RANKS, largest=MORE_RANKS,
                )
            )
            for at in range(ENGINES)
        ]  # fmt: skip
        out.print(
            f"{ENGINES} engines of {RANKS} ranks serve the example model; the controller at "
            f"{address} looks every {EVERY_S:g} s"
        )
        domains = {name: prompts(name) for name in ("code", "tables")}
        answers = undisturbed(engines, [one for each in domains.values() for one in each])
        with grpc.insecure_channel(address) as channel, front(address) as door:
            threading.Thread(target=_quietly, args=(tell, channel, begun_s), daemon=True).start()
            traffic = Traffic(door, answers)
            rows = serve(channel, traffic, domains, begun_s)
            report(channel, rows, traffic)
        ray.get([engine.close.remote() for engine in engines])
        end(handle)
    out.print(f"took {time.monotonic() - begun_s:.0f} s")


def serve(
    channel: grpc.Channel, traffic: Traffic, domains: dict[str, list[list[int]]], begun_s: float
) -> list[tuple[str, list[float]]]:
    """Each domain's balancedness, and two changes of width in the last."""
    rows: list[tuple[str, list[float]]] = []
    for name, domain in domains.items():
        at_s = time.monotonic() - begun_s
        out.print(f"[dim]{at_s:5.1f} s[/]  [cyan]the traffic is {name} now[/]")
        traffic.domain = domain
        if not rows:
            traffic.start(domain)
        rows.append((name, list(watch(channel, PHASE_S))))
    for ranks in (MORE_RANKS, RANKS):
        at_s = time.monotonic() - begun_s
        out.print(f"[dim]{at_s:5.1f} s[/]  [cyan]the engines get {ranks} ranks[/]")
        scale(channel, ranks)
    traffic.stop()
    return rows


def undisturbed(engines: list[Any], asked: list[list[int]]) -> Answers:
    """What idle engines answer before anything moves."""
    refs = [engines[at % ENGINES].generate.remote(one, ANSWER) for at, one in enumerate(asked)]
    found = ray.get(refs)
    return {tuple(one): tokens for one, (tokens, _) in zip(asked, found, strict=True)}


def report(channel: grpc.Channel, rows: list[tuple[str, list[float]]], traffic: Traffic) -> None:
    table = Table("traffic", "balancedness before", "after", title="what the controller won")
    for name, seen in rows:
        known = (f"{min(seen):.3f}", f"{seen[-1]:.3f}") if seen else ("too few tokens", "")
        table.add_row(name, *known)
    out.print(table)
    operations = FleetServiceStub(channel).Operations(OperationsRequest()).operations
    records = LedgerServiceStub(channel).History(HistoryRequest()).records
    copied = sum(one.copied_bytes for one in operations)
    out.print(
        f"{len(operations)} operations copied {copied / 1e6:.1f} MB of experts between processes; "
        f"{len(records)} records say why\n"
        f"{traffic.served} requests served, {traffic.failed} failed, {traffic.different} with "
        f"other tokens; longest pause between two tokens {traffic.longest_gap_s * 1e3:.0f} ms"
    )
    (pool,) = FleetServiceStub(channel).Status(StatusRequest(), timeout=10).pools
    out.print(f"tables: {pool.homing.reason}")
    if traffic.failed or traffic.different:
        raise SystemExit("a request failed or a token differed: this is a bug")


def _quietly(what: Any, channel: grpc.Channel, begun_s: float) -> None:
    with suppress(grpc.RpcError, ValueError):  # the demo is over
        what(channel, begun_s)


if __name__ == "__main__":
    main()
