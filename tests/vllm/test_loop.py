"""The controller's loop on a real engine: it proposes, waits, applies what is approved, and goes
back."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")

from controller.config import Config, PoolPolicy
from controller.engines.fleet_engines import FleetEngines
from controller.engines.in_memory import MemoryEngines, MemoryPlanner
from controller.engines.vllm_engines import VllmEngines
from controller.fleet.workers import Fleet
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.loop import Loop
from controller.pool_policies import PoolPolicies
from controller.server.security import Listening
from controller.server.serve import start
from placer.clock import SystemClock
from placer.files.specs import read_topology
from placer.v1 import fleet_pb2, placement_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceStub
from placer.v1.placement_pb2_grpc import PlacementServiceStub
from tests.vllm.engines import ROOT, Engine
from tests.vllm.story import REDUNDANT, real_prompts

TOKENS = 60
POLICY = PoolPolicy(
    topology=read_topology(str(ROOT / "examples" / "tiny_moe" / "cpus.yaml")),
    window_s=3600.0,
    least_tokens=1000,
    confirmations=1,
    cooldown_s=0.0,
    max_moved=1.0,
)


@dataclass
class Outcome:
    """tokens and maps: at each point of the story"""

    tokens: dict[str, list[list[int]]]
    maps: dict[str, list[list[list[int]]]]
    digests: dict[str, str]
    operations: list[Any]
    acknowledged: dict[str, list[str]]


@pytest.fixture(scope="module")
def controller() -> Iterator[tuple[str, Loop]]:
    """Its address, and its loop, which runs on a thread."""
    ready: Any = threading.Event()

    async def run() -> None:
        config = Config(POLICY, every_s=1.0)
        clock = SystemClock()
        ledger = WatchedLedger(Ledger(None, FORMS), clock)
        fleet = Fleet(lambda _: POLICY.window_s, clock)
        by_agent = VllmEngines(fleet, ledger, config)
        engines = FleetEngines(fleet, MemoryEngines({}), by_agent)
        ready.loop = Loop(config, ledger, fleet, engines, MemoryPlanner(clock))
        told = PoolPolicies(config, ledger), Listening("127.0.0.1:0")
        server, ready.port = await start(ready.loop, by_agent, *told)
        ready.task = asyncio.create_task(ready.loop.run())
        ready.events = asyncio.get_running_loop()
        ready.set()
        with pytest.raises(asyncio.CancelledError):
            await ready.task
        await server.stop(None)
        ledger.records.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert ready.wait(30)
    yield f"127.0.0.1:{ready.port}", ready.loop
    ready.events.call_soon_threadsafe(ready.task.cancel)
    thread.join()


@pytest.fixture(scope="module")
def outcome(
    controller: tuple[str, Loop], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcome]:
    address, loop = controller
    prompts = real_prompts()
    with (
        grpc.insecure_channel(address) as channel,
        Engine(tmp_path_factory.mktemp("loop"), address, width=2, redundant=REDUNDANT) as engine,
    ):
        fleet, placements = FleetServiceStub(channel), PlacementServiceStub(channel)
        tokens, maps, digests = {}, {}, {}

        def serve(name: str) -> None:
            tokens[name] = engine.generate(prompts, TOKENS).tokens
            maps[name] = engine.call("placer_map")

        def pool() -> Any:
            return fleet.Status(fleet_pb2.StatusRequest()).pools[0]

        def until_done(id: str) -> None:
            request = fleet_pb2.OperationsRequest(operation_id=id)
            running = (fleet_pb2.OPERATION_PHASE_RUNNING, fleet_pb2.OPERATION_PHASE_RETURNING)

            def done() -> bool:
                engine.generate(prompts[:1], 20)  # a rebalancing step needs traffic
                return fleet.Operations(request).operations[0].phase not in running

            _until(done)

        serve("undisturbed")
        _until(lambda: bool(pool().proposed_plan))
        serve("proposed")
        plan = pool().proposed_plan
        digests["plan"] = placements.Get(placement_pb2.GetRequest(plan_id=plan)).plan.digest
        applying = placements.Apply(placement_pb2.ApplyRequest(plan_id=plan)).operation
        until_done(applying.id)
        serve("applied")
        acknowledged = {"applied": _digests(loop)}
        back = placements.Rollback(placement_pb2.RollbackRequest(pool=pool().name)).operation
        until_done(back.id)
        serve("rolled back")
        acknowledged["rolled back"] = _digests(loop)
        operations = list(fleet.Operations(fleet_pb2.OperationsRequest()).operations)
        yield Outcome(tokens, maps, digests, operations, acknowledged)


def test_advisory_proposes_and_moves_nothing(outcome: Outcome) -> None:
    assert outcome.digests["plan"]
    assert outcome.maps["proposed"] == outcome.maps["undisturbed"]


def test_what_is_approved_is_applied_and_acknowledged_by_every_rank(outcome: Outcome) -> None:
    (before, _), (after, other) = outcome.maps["proposed"], outcome.maps["applied"]
    assert after == other
    changed = int((np.array(before) != np.array(after)).sum())
    print(f"\nslots changed by the loop's plan: {changed} of {np.array(after).size}")
    assert changed
    assert outcome.acknowledged["applied"] == [outcome.digests["plan"]] * 2


def test_the_way_back_leads_to_the_map_before(outcome: Outcome) -> None:
    assert outcome.maps["rolled back"] == outcome.maps["undisturbed"]
    assert len(set(outcome.acknowledged["rolled back"])) == 1


def test_both_operations_succeed(outcome: Outcome) -> None:
    succeeded = fleet_pb2.OPERATION_PHASE_SUCCEEDED
    told = [(one.kind, one.phase == succeeded) for one in outcome.operations]
    assert told == [("rollback", True), ("apply", True)]


@pytest.mark.parametrize("when", ["proposed", "applied", "rolled back"])
def test_no_token_differs(outcome: Outcome, when: str) -> None:
    assert outcome.tokens[when] == outcome.tokens["undisturbed"]


def _digests(loop: Loop) -> list[str]:
    records = loop.ledger.records.newest("acknowledgement")
    return [record.value.digest for record in records]


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 150
    while not true():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.5)
