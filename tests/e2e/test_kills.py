"""kill -9 of the controller, and of ranks, at random moments of migrations, under traffic.

Real processes: Ray, the controller's actor, an engine whose ranks hold experts in shared memory.
Which moments were hit is told in the summary; what must hold at all of them is asserted.
"""

import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[dev]'")
import ray

from controller.assemble import Setup
from controller.config import PoolPolicy, read_config
from controller.engines.ray_actor import Serving, start_engine
from controller.hosts.ray import end, launch
from controller.server.security import Listening
from placer.checks import violations
from placer.files.plans import plan_text
from placer.files.specs import read_topology
from placer.objective import Objective
from placer.parallel import connect
from placer.placement import Placement
from placer.plan import Plan
from placer.v1 import fleet_pb2, placement_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub, LedgerServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

ROOT = Path(__file__).parents[2]
TINY = ROOT / "examples" / "tiny_moe"
LAYERS, EXPERTS, SLOTS, RANKS = 6, 16, 20, 2
CONTROLLER_KILLS, RANK_KILLS = 50, 20
POLICY = PoolPolicy(
    topology=read_topology(str(TINY / "cpus.yaml")),
    least_tokens=10**9,  # the loop proposes nothing by itself
    bytes_per_minute=60 * 12 * 10**6,  # so that a migration takes most of a second
    max_moved=1.0,
)
OPEN = (fleet_pb2.OPERATION_PHASE_RUNNING, fleet_pb2.OPERATION_PHASE_RETURNING)
ENDS = {
    fleet_pb2.OPERATION_PHASE_SUCCEEDED: "succeeded",
    fleet_pb2.OPERATION_PHASE_ROLLED_BACK: "rolled back",
}


class Fleet:
    """One pool of one engine, its controller, and clients that never stop asking."""

    def __init__(self, folder: Path) -> None:
        connect("local", object_store_memory=200 * 2**20)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{found.getsockname()[1]}"
        config = replace(read_config(None), default=POLICY, every_s=0.5)
        self.controller, _ = launch(Setup(config, Listening(address), folder / "placer.db"))
        self.engine = start_engine(Serving("pool", "engine", TINY / "model", RANKS, SLOTS, address))
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_reconnect_backoff_ms", 200)]
        )
        self.state = FleetServiceStub(self.channel)
        self.ledger = LedgerServiceStub(self.channel)
        self.plans = PlacementServiceStub(self.channel)
        text = (ROOT / "README.md").read_bytes()
        self.prompts = [list(text[at * 300 : at * 300 + 60]) for at in range(8)]
        self.answers = [self._ask(prompt) for prompt in self.prompts]  # nothing moved yet
        self.served = 0
        self.wrong: list[str] = []
        self._is_over = threading.Event()
        self._clients = [threading.Thread(target=self._serve, args=(at,)) for at in range(4)]
        for client in self._clients:
            client.start()
        self.insist(lambda: len(self.state.Status(fleet_pb2.StatusRequest()).pools) == 1)

    def close(self) -> None:
        self._is_over.set()
        for client in self._clients:
            client.join()
        self.channel.close()
        ray.get(self.engine.close.remote())
        end(self.controller)

    def placement(self) -> Placement:
        found: Placement = ray.get(self.engine.placement.remote())
        return found

    def begin(self, placement: Placement) -> str:
        """Have it applied; the operation's id."""
        file = plan_text(Plan(placement)).encode()
        request = placement_pb2.ProposeRequest(pool="pool", file=file)
        proposed = self.insist(lambda: self.plans.Propose(request)).plan
        apply = placement_pb2.ApplyRequest(plan_id=proposed.id, idempotency_key=proposed.id)
        found: str = self.insist(lambda: self.plans.Apply(apply)).operation.id
        return found

    def ended(self, id: str) -> Any:
        """The operation, once it is at its end."""
        request = fleet_pb2.OperationsRequest(operation_id=id)

        def final() -> Any:
            (found,) = self.state.Operations(request).operations
            return None if found.phase in OPEN else found

        return self.insist(final)

    def insist(self, what: Any, seconds: float = 90) -> Any:
        """What it returns as soon as it does, whatever the controller is going through."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            with suppress(grpc.RpcError):
                if found := what():
                    return found
            time.sleep(0.02)
        raise AssertionError("it did not happen in time")

    def _ask(self, prompt: list[int]) -> list[int]:
        tokens, _ = ray.get(self.engine.generate.remote(prompt, 40))
        return list(tokens)

    def _serve(self, at: int) -> None:
        while not self._is_over.is_set():
            at = (at + 1) % len(self.prompts)
            try:
                tokens = self._ask(self.prompts[at])
            except Exception as error:
                self.wrong.append(str(error))
            else:
                self.served += 1
                if tokens != self.answers[at]:
                    self.wrong.append(f"prompt {at} has other tokens")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    found = Fleet(tmp_path_factory.mktemp("kills"))
    yield found
    found.close()


def another(rng: np.random.Generator) -> Placement:
    """Some placement in which a rank has no expert twice."""
    rows = []
    for _ in range(LAYERS):
        order = rng.permutation(EXPERTS)
        ranks = [list(order[:8]), list(order[8:])]
        for mine, theirs in (ranks, ranks[::-1]):
            mine += list(rng.choice(theirs[:8], 2, replace=False))
        rows.append(ranks[0] + ranks[1])
    return Placement(np.array(rows), EXPERTS, RANKS)


def same_experts(one: Placement, other: Placement) -> bool:
    return bool((one.copies == other.copies).all())


def states(fleet: Fleet, operation: str) -> list[str]:
    """The machine's, one after another."""
    request = fleet_pb2.ExplainRequest(id=operation)
    records = fleet.ledger.Explain(request).records
    bodies = [record.body for record in records if record.kind == "operation"]
    return [body.split('"state": "')[1].split('"')[0] for body in bodies]


def check(fleet: Fleet, id: str, home: Placement, goal: Placement) -> str:
    """It ended, as the ledger says, in a valid map."""
    operation = fleet.ended(id)
    assert operation.phase in ENDS, operation
    stands = fleet.placement()
    assert violations(stands, Objective()) == []
    target = goal if operation.phase == fleet_pb2.OPERATION_PHASE_SUCCEEDED else home
    assert same_experts(stands, target), operation
    assert fleet.wrong == []
    return ENDS[operation.phase]


def test_controller_killed(fleet: Fleet, tell: Callable[[str], None]) -> None:
    rng, moments, ends = np.random.default_rng(5), Counter[str](), Counter[str]()
    chance = random.Random(5)
    while moments.total() < CONTROLLER_KILLS:
        home, goal = fleet.placement(), another(rng)
        pid = ray.get(fleet.controller.pid.remote())
        id = fleet.begin(goal)
        time.sleep(chance.uniform(0, 0.9))
        os.kill(pid, signal.SIGKILL)
        ends[check(fleet, id, home, goal)] += 1
        seen = states(fleet, id)
        if "discarding" in seen:  # it found itself in the middle
            moments[seen[seen.index("discarding") - 1]] += 1
    tell(
        f"controller: {ends.total()} kills, {moments.total()} in the middle of a migration, "
        f"while {dict(moments)}; they ended {dict(ends)}; {fleet.served} requests, "
        "0 failed or different"
    )


def test_rank_killed(fleet: Fleet, tell: Callable[[str], None]) -> None:
    rng, chance, ends = np.random.default_rng(6), random.Random(6), Counter[str]()
    for _ in range(RANK_KILLS):
        home, goal = fleet.placement(), another(rng)
        pids = ray.get(fleet.engine.pids.remote())
        id = fleet.begin(goal)
        time.sleep(chance.uniform(0, 0.9))
        killed = chance.choice(pids)
        os.kill(killed, signal.SIGKILL)
        ends[check(fleet, id, home, goal)] += 1
        while killed in ray.get(fleet.engine.pids.remote()):
            time.sleep(0.05)  # not missed yet: it died after the migration
    restarts = ray.get(fleet.engine.status.remote()).restarts
    assert restarts >= RANK_KILLS
    tell(
        f"ranks: {RANK_KILLS} kills during migrations, which ended {dict(ends)}; "
        f"{fleet.served} requests, 0 failed or different"
    )
