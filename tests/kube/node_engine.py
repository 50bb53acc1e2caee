"""The example engine as pods run it, each of which is a rank: `python engine.py`.

The ranks of a local engine share one host's memory, so all of them are processes of the first pod.
The other pods' agents say what that one tells them: that they are ranks 1, 2, ... of its map.
The first applies the plans that its agent hears of, and changes its width as vLLM is asked to.
"""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from aiohttp import web

from controller.local_engine.api_server import ApiServer
from controller.local_engine.local_engine import LocalEngine
from controller.migration.commands import Command, Done, Release, Stage, Switch, Transfer
from controller.migration.machine import Attempt, State
from placer.agent.recording import PAUSE_S, Recording
from placer.agent.reporter import Reporter
from placer.agent.sampling import Sampling
from placer.agent.sinks import way_to
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.model import ModelShape
from placer.placement import Placement
from placer.plan import Plan
from placer.schedule import Budget, schedule
from placer.topology import preset
from placer.worker import Worker

RANKS, MOST, SLOTS = 2, 3, 10  # slots of each rank
PORT, LOOK_S = 8000, 0.3
MODEL = "tiny-moe"
ROUND = (State.DROPPING, State.COPYING, State.COMMITTING)
CLOCK = SystemClock()


class Elastic(ApiServer):
    """The engine's API server, with vLLM's routes for another width, and what its ranks may say.

    standing: for agents: ranks, epoch and digest of the plan that was applied last, the model
    """

    def __init__(self, engine: LocalEngine, host: str) -> None:
        self._one_at_a_time, self._change = threading.Lock(), ("idle", 0, 0)
        self._applied: tuple[int, str, int] = 0, "", 0  # epoch, digest, width
        super().__init__(engine, host, PORT)

    def _routes(self) -> list[web.RouteDef]:
        return [
            *super()._routes(),
            web.get("/standing", self._stands),
            web.post("/is_scaling_elastic_ep", self._is_scaling),
            web.post("/scale_elastic_ep", self._scale),
        ]

    @property
    def standing(self) -> dict[str, Any]:
        (epoch, digest, width), ranks = self._applied, self._engine.placement.gpus
        shape = asdict(self._engine.shape) | {"name": MODEL}
        digest = digest if width == ranks else ""
        return {"ranks": ranks, "epoch": epoch, "digest": digest, "shape": shape}

    def apply(self, epoch: int, plan: Plan) -> None:
        """In rounds, beside serving. A rank may order its slots otherwise than the plan does."""
        with self._one_at_a_time:
            engine, goal = self._engine, plan.placement
            before, size = engine.placement, engine.shape.expert_bytes
            hardware = preset("pcie-l40s").resized(before.gpus)
            found = schedule(before, goal, size, hardware, Budget(2**30, scratch_slots=2))
            attempt = Attempt(epoch, before, found.after, found.rounds)
            self._do(attempt.command(State.STAGING, 0))
            for at in range(len(attempt.rounds)):
                for state in ROUND:
                    self._do(attempt.command(state, at))
            self._do(attempt.command(State.VERIFYING, 0))
            self._applied = epoch, goal.digest, goal.gpus

    def resize(self, ranks: int) -> None:
        """Ranks keep what they have, until a plan comes: pages for all of another map are none."""
        with self._one_at_a_time:
            before, epoch = self._engine.placement, int(CLOCK.now() * 1000)
            if before.gpus == ranks:
                return
            after = Placement(_rows(before, ranks), before.experts, ranks)
            self._change = "preparing", epoch, ranks
            self._do(Stage(epoch, before, after))
            self._do(Transfer(epoch))
            self._do(Switch(epoch))
            self._do(Release(epoch))
            self._change = "completed", epoch, ranks

    def _do(self, command: Command) -> None:
        outcome = self._engine.carry_out(command)
        if not isinstance(outcome, Done):
            raise PlacerError(outcome.reason)

    async def _stands(self, _: web.Request) -> web.Response:
        return web.json_response(self.standing)

    async def _is_scaling(self, _: web.Request) -> web.Response:
        phase, epoch, ranks = self._change
        told = {"phase": phase, "epoch": str(epoch), "requested_data_parallel_size": ranks}
        return web.json_response(told)

    async def _scale(self, http: web.Request) -> web.Response:
        ranks = int((await http.json())["new_data_parallel_size"])
        try:
            await asyncio.to_thread(self.resize, ranks)
        except PlacerError as error:
            return web.json_response({"error": {"message": str(error)}}, status=500)
        return web.json_response({})


def _rows(before: Placement, ranks: int) -> np.ndarray:
    """New ranks have the first experts once more. Of those that retire, experts that no other rank
    has take the place of replicas."""
    new = np.tile(np.arange(SLOTS), (before.layers, max(ranks - before.gpus, 0)))
    found = np.hstack([before.physical_to_logical[:, : ranks * SLOTS], new])
    for row in found:
        for expert in sorted(set(range(before.experts)) - set(row.tolist())):
            row[np.flatnonzero(np.bincount(row)[row] > 1)[0]] = expert
    return found


class Agent:
    """Of one rank. told: what its engine's first pod says of it; server: that, if it is this one"""

    def __init__(self, rank: int, told: Mapping[str, Any], server: Elastic | None = None) -> None:
        self._rank, self.told, self._server = rank, told, server
        self._condition = ""

    @property
    def shape(self) -> ModelShape:
        told = self.told["shape"]
        return ModelShape(**{**told, "moe_layers": tuple(told["moe_layers"])})

    @property
    def worker(self) -> Worker:
        shape, ranks = self.shape, self.told["ranks"]
        return Worker(
            f"worker-{self._rank}", MODEL, shape.layers, shape.experts, shape.top_k, SLOTS * ranks,
            self._rank, ranks, can_apply=True, records=self._server is not None, can_resize=True,
            most_ranks=MOST,
        )  # fmt: skip

    @property
    def changes(self) -> int:
        return int(self.told["ranks"])

    @property
    def epoch(self) -> int:
        return int(self.told["epoch"])

    @property
    def digest(self) -> str:
        return str(self.told["digest"])

    def offer(self, epoch: int, plan: Plan) -> str:
        if self._server is not None and plan.placement.gpus == self.told["ranks"]:
            threading.Thread(target=self._apply, args=(self._server, epoch, plan)).start()
        return ""

    def condition(self) -> str:
        return self._condition

    def _apply(self, server: Elastic, epoch: int, plan: Plan) -> None:
        try:
            server.apply(epoch, plan)
        except PlacerError as error:
            self._condition = str(error)


class Recorder:
    """The engine counts by itself."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine, self._due_s = engine, 0.0

    def sample(self, how: Sampling | None) -> None:
        self._engine.sample_requests(how)

    def take(self) -> Recording:
        return self._engine.record()

    def take_idle(self) -> Recording | None:
        if CLOCK.monotonic() < self._due_s:
            return None
        self._due_s = CLOCK.monotonic() + PAUSE_S
        return self.take()


class Version(BaseHTTPRequestHandler):
    """What a pod that only is a rank answers to its probes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


def main() -> None:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    rank = int(os.environ["PLACER_POD_NAME"].rpartition("-")[2])
    if rank:
        follow(rank, over)
    else:
        lead(over)


def reporting(agent: Agent, engine: LocalEngine | None = None) -> Reporter:
    """Its agent, at work, which knows the controller by the pod's variables."""
    sink = way_to(os.environ["PLACER_AGENT"], CLOCK)(agent.worker, agent.shape)
    found = Reporter(agent.worker, sink, Recorder(engine) if engine else None, agent, CLOCK)
    found.start()
    return found


def lead(over: threading.Event) -> None:
    model, spare = Path(os.environ["MODEL"]), MOST - RANKS
    with LocalEngine(
        model, RANKS, RANKS * SLOTS, smallest=RANKS, standbys=spare, spares=spare
    ) as engine:
        server = Elastic(engine, os.environ["POD_IP"])
        agent = Agent(0, server.standing, server)
        reporter = reporting(agent, engine)
        while not over.wait(LOOK_S):
            agent.told = server.standing
        reporter.close()
        server.close()


def follow(rank: int, over: threading.Event) -> None:
    server = ThreadingHTTPServer((os.environ["POD_IP"], PORT), Version)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    agent, reporter = Agent(rank, {"ranks": 0}), None
    while not over.wait(LOOK_S):
        with suppress(OSError), urlopen(f"{os.environ['PLACER_API']}/standing", timeout=5) as told:
            agent.told = json.load(told)
        is_rank = agent.told["ranks"] > rank
        if reporter is None and is_rank:
            reporter = reporting(agent)
        elif reporter is not None and not is_rank:  # it retired
            reporter.close()
            reporter = None
    if reporter is not None:
        reporter.close()
    server.shutdown()


if __name__ == "__main__":
    main()
