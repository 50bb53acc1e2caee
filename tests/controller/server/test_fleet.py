"""FleetService and LedgerService: who is there, what is done, and what was."""

import json
from dataclasses import asdict
from typing import Any

import grpc
import pytest

from placer.v1 import fleet_pb2
from placer.v1.fleet_pb2 import (
    ExplainRequest,
    HistoryRequest,
    OperationsRequest,
    ScaleToRequest,
    StatusRequest,
)
from placer.v1.placement_pb2 import ApplyRequest, GetRequest, ListRequest, ProposeRequest
from tests.builders import a_model
from tests.controller.server.tiny_server import a_push, a_world, refusal
from tests.controller.tiny_pool import asynchronous

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_NOW = grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND
HUGE = 2**63

SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "no JSON": ({"shape": "{"}, "the model's shape is not JSON (Expecting"),
    "deep": ({"shape": "[" * 60_000}, "the model's shape is nested too deep: "),
    "long": ({"shape": "[" * 70_000}, "has 70000 characters: at most 65536 are read"),
    "not a shape": ({"shape": json.dumps({"layers": 2})}, "the model's shape: "),
    "of another model": (
        {"changes": {"experts": 2}},
        "tiny has 2 layers x 4 experts, top-1 but the worker 2 layers x 2 experts",
    ),
    "no layers": ({"changes": {"layers": 0}}, "0 layers x 4 experts, top-1: sizes are 1 to 4096"),
    "no end of experts": ({"changes": {"experts": 5000, "slots": 5000}}, "sizes are 1 to 4096"),
    "top-0": ({"changes": {"top_k": 0}}, "top-0: sizes are 1 to 4096"),
    "no end of slots": (
        {"changes": {"slots": 2**32 - 2}},
        "2 layers of 4294967294 slots: ranks count from 0, and all slots are at most 1048576",
    ),
    "a rank beyond": ({"changes": {"ep_rank": 2}}, "rank 2 of 2, 2 layers of 4 slots: ranks count"),
    "more choices than experts": (
        {"changes": {"top_k": 5}},
        "top-5: sizes are 1 to 4096, and top-k",
    ),
    "a model that nobody counts": (
        {"changes": {"layers": 4000, "experts": 200, "slots": 200}},
        "4000 layers x 200 experts on 2 ranks: layers x experts^2 are at most 134217728",
    ),
    "ranks that nobody has": (
        {"changes": {"layers": 1, "ep_size": 5000, "slots": 5000}},
        "on 5000 ranks: layers x experts^2 are at most 134217728, layers x experts x ranks",
    ),
    "twice": ({"shape": '{"layers": 2, "layers": 2}'}, "is not JSON (a key is there twice)"),
    "tokens": ({"tokens": HUGE}, f"tokens is {HUGE}: at most {2**48} can be counted"),
    "an epoch": ({"epoch": HUGE}, f"epoch is {HUGE}: at most {2**48} can be counted"),
}


@pytest.mark.parametrize(("said", "why"), SHAPES.values(), ids=SHAPES)
@asynchronous
async def test_a_registration_that_makes_no_sense_is_refused(
    said: dict[str, Any], why: str
) -> None:
    async with a_world() as world:
        code, told = await refusal(world.register(**said))
        assert (code, why in told) == (INVALID, True), told
        assert not world.loop.fleet.pools


ABSURD = {
    "not a number": "NaN",
    "without end": "1e999",
    "none": "0",
    "less than none": "-1",
    "400 digits": "9" * 400,
    "5000 digits": "9" * 5000,
    "400 digits as text": f'"{"9" * 400}"',
    "text": '"\\ud800"',
    "a list": "[]",
}


@pytest.mark.parametrize("value", ABSURD.values(), ids=ABSURD)
@pytest.mark.parametrize("key", ["layers", "experts", "top_k", "hidden", "moe_intermediate"])
@asynchronous
async def test_no_size_of_a_model_is_absurd(key: str, value: str) -> None:
    sizes = {"layers": "2", "experts": "4", "top_k": "1", "hidden": "8", "moe_intermediate": "8"}
    text = ", ".join(f'"{name}": {size}' for name, size in {**sizes, key: value}.items())

    async with a_world() as world:
        code, told = await refusal(world.register(shape=f'{{"name": "tiny", {text}}}'))
        assert code is INVALID
        assert len(told) < 300
        assert not world.loop.fleet.pools


@pytest.mark.parametrize(
    ("name", "shown"), [(r"a\ud800b\u001b[31m", "a?b?[31m"), ("x" * 9000, "x" * 200)]
)
@asynchronous
async def test_a_models_name_is_cut_and_can_be_shown(name: str, shown: str) -> None:
    text = json.dumps(asdict(a_model())).replace('"name": "tiny"', f'"name": "{name}"')

    async with a_world() as world:
        await world.register(shape=text)
        (pool,) = (await world.fleet.Status(StatusRequest())).pools
        assert pool.model == shown
        await world.loop.tick()
        assert not world.loop.conditions


PLACES: dict[str, tuple[dict[str, Any], str]] = {
    "slots that do not divide": ({"changes": {"slots": 5}}, "5 slots on 2 ranks: they must divide"),
    "fewer slots than experts": ({"changes": {"slots": 2}}, "2 slots on 2 ranks"),
    "no pool": ({"pool": ""}, "pool '': a name has 1 to 200 printable characters"),
    "no engine": ({"engine": ""}, "engine '': a name has"),
    "a name of two lines": ({"worker": "a\nb"}, r"worker 'a\nb': a name has"),
    "a long name": ({"engine": "e" * 201}, "a name has 1 to 200 printable characters"),
    "more slots than the pool": (
        {"worker": "worker-1", "changes": {"slots": 6}},
        "pool tiny has 2 layers x 4 experts, top-1, on 2 ranks in 4 slots and worker-1 of engine-1 "
        "2 layers x 4 experts, top-1, on 2 ranks in 6 slots: give it another PLACER_POOL",
    ),
}


@pytest.mark.parametrize(("said", "why"), PLACES.values(), ids=PLACES)
@asynchronous
async def test_a_worker_that_the_pool_has_no_place_for_is_told_why_and_leaves_no_trace(
    said: dict[str, Any], why: str
) -> None:
    async with a_world() as world:
        await world.register()
        code, told = await refusal(world.register(refused_epoch=7, refused="no", **said))
        assert (code, why in told) == (NOT_NOW, True), told
        assert list(world.loop.fleet.pools) == ["tiny"]
        assert not world.loop.ledger.records.history()


@asynchronous
async def test_a_worker_without_a_shape_is_known_by_its_sizes() -> None:
    async with a_world() as world:
        await world.register(shape="", changes={"model": "somebody/a\n model"})
        (pool,) = (await world.fleet.Status(StatusRequest())).pools
        assert (pool.model, pool.ranks, pool.slots) == ("a model", 2, 4)


@asynchronous
async def test_status_says_how_engines_stand_and_what_they_lost() -> None:
    async with a_world() as world:
        await world.traffic()
        await world.pushed(a_push(4))  # 2 and 3 never came
        await world.register(engine="engine-2", worker="worker-1", epoch=9, digest="sha256:ab")
        await world.register(
            engine="engine-2",
            tokens=70,
            dropped=5,
            condition="stalled\nfor long",
            digest="sha256:ab",
        )
        found = await world.fleet.Status(StatusRequest(pool="tiny"))
        (pool,) = found.pools
        assert found.version
        assert (pool.name, pool.mode, pool.tokens, pool.window_s) == (
            "tiny",
            "advisory",
            2400,
            3600,
        )
        first, second = pool.engines
        assert (first.name, first.workers, first.dropped, first.digest) == ("engine-1", 1, 2, "")
        assert (second.workers, second.tokens, second.dropped, second.epoch) == (2, 70, 5, 9)
        assert (second.digest, list(second.conditions)) == ("sha256:ab", ["stalled for long"])
        assert 0 <= second.silent_s < 30


@asynchronous
async def test_status_adds_up_also_where_workers_lie() -> None:
    async with a_world() as world:
        for worker in ("worker-0", "worker-1"):
            await world.register(worker=worker, tokens=2**48, dropped=2**48)
            await world.pushed(a_push(1, worker=worker), a_push(2**48, worker=worker))
        ((engine,),) = [pool.engines for pool in (await world.fleet.Status(StatusRequest())).pools]
        assert (engine.tokens, engine.dropped) == (2**49, 2**49)


@asynchronous
async def test_status_tells_the_decision_the_plan_and_the_operation() -> None:
    async with a_world() as world:
        await world.traffic()
        await world.loop.tick()
        world.engines.gate.clear()
        plan = (await world.placement.Propose(ProposeRequest(pool="tiny"))).plan
        (pool,) = (await world.fleet.Status(StatusRequest())).pools
        assert (pool.outcome, pool.balancedness) == ("wait", 0.6)
        assert pool.reason.endswith("1 of 2 decisions in a row that want it")
        assert (pool.proposed_plan, pool.applied_plan) == ("plan-1", "")
        assert not pool.HasField("operation")
        await world.placement.Apply(ApplyRequest(plan_id=plan.id))
        (pool,) = (await world.fleet.Status(StatusRequest())).pools
        assert (pool.operation.id, pool.operation.progress) == ("op-1", "engine-1: staging")
        world.engines.gate.set()
        await world.loop.arbiter.settle()
        (pool,) = (await world.fleet.Status(StatusRequest())).pools
        assert (pool.proposed_plan, pool.applied_plan) == ("", "plan-1")
        assert not pool.HasField("operation")


@asynchronous
async def test_status_tells_what_keeps_the_controller_from_its_work() -> None:
    async with a_world() as world:
        await world.traffic()
        for name in ("engine-1", "engine-2"):
            world.engines.engines["tiny", name].is_gone = True
        await world.loop.tick()
        world.loop.conditions["ledger"] = "the disk is full"
        found = await world.fleet.Status(StatusRequest())
        assert list(found.conditions) == ["ledger: the disk is full"]
        assert found.pools[0].outcome == "hold"
        assert "engine-2 of tiny is gone: start it again" in found.pools[0].reason


@asynchronous
async def test_what_cannot_be_read_is_named_and_only_who_needs_it_is_refused() -> None:
    async with a_world() as world:
        await world.traffic()
        await world.proposed()
        kept = await world.proposed()
        records = world.loop.ledger.records
        records._connection.execute("UPDATE records SET body = '{' WHERE id = 'plan-1'")
        lost = GetRequest(plan_id="plan-1")
        for ask in (world.placement.Get(lost), world.ledger.Explain(ExplainRequest(id="plan-1"))):
            code, told = await refusal(ask)
            assert code is grpc.StatusCode.DATA_LOSS
            assert told.startswith("the ledger in memory: plan plan-1 is not JSON (version ")
        plans = (await world.placement.List(ListRequest())).plans
        assert [plan.id for plan in plans] == [kept.id] == ["plan-2"]
        records = (await world.ledger.History(HistoryRequest())).records
        assert [record.id for record in records] == ["plan-2"]
        found = await world.fleet.Status(StatusRequest())
        assert list(found.conditions) == ["plan plan-1: is not JSON (version 2 of it): left out"]


@pytest.mark.parametrize("method", ["Status", "ScaleTo"])
@asynchronous
async def test_a_pool_that_is_not_there_is_not_found(method: str) -> None:
    async with a_world() as world:
        request = getattr(fleet_pb2, f"{method}Request")(pool="other")
        assert await refusal(getattr(world.fleet, method)(request)) == (
            NOT_FOUND,
            "no pool 'other': there is none yet: does PLACER_AGENT name this address?",
        )


@asynchronous
async def test_another_width_is_refused_with_its_reason_once_for_each_key() -> None:
    async with a_world() as world:
        await world.register()
        request = ScaleToRequest(pool="tiny", ranks=4, reason="more users", idempotency_key="mine")
        first = (await world.fleet.ScaleTo(request)).operation
        assert first.phase == fleet_pb2.OPERATION_PHASE_REFUSED
        assert (first.id, first.kind, first.idempotency_key) == ("op-1", "scale", "mine")
        assert first.reason.startswith("tiny stays at 2 ranks: engine-1 cannot change its width")
        assert (await world.fleet.ScaleTo(request)).operation == first
        request.idempotency_key = "another"
        assert (await world.fleet.ScaleTo(request)).operation.id == "op-2"
        assert world.loop.arbiter.history.last_changes("tiny") == (None, 0)  # it begins no cooldown


@asynchronous
async def test_operations_are_listed_newest_first_or_one_by_its_id() -> None:
    async with a_world() as world:
        await world.register()
        for _ in range(3):
            await world.fleet.ScaleTo(ScaleToRequest(pool="tiny", ranks=4))

        async def ids(**asked: Any) -> list[str]:
            found = await world.fleet.Operations(OperationsRequest(**asked))
            return [operation.id for operation in found.operations]

        assert await ids() == await ids(pool="tiny") == ["op-3", "op-2", "op-1"]
        assert await ids(limit=1) == ["op-3"]
        assert await ids(operation_id="op-2") == ["op-2"]
        assert await ids(pool="other") == []
        told = await refusal(ids(operation_id="op-9"))
        assert told == (NOT_FOUND, "no operation 'op-9': `placer history` lists them")


@asynchronous
async def test_history_tells_the_last_of_each_and_no_maps() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        await world.placement.Apply(ApplyRequest(plan_id=plan.id, reason="now"))
        await world.loop.arbiter.settle()
        await world.register(epoch=9, digest=plan.digest)
        records = (await world.ledger.History(HistoryRequest())).records
        assert [(record.kind, record.id) for record in records] == [
            ("acknowledgement", "tiny/engine-1/worker-0"),
            ("plan", "plan-1"),
            ("operation", "op-1"),
        ]
        assert json.loads(records[1].body)["state"] == "applied"
        assert records[1].version == 4
        assert len((await world.ledger.History(HistoryRequest(limit=2))).records) == 2
        assert not (await world.ledger.History(HistoryRequest(pool="other"))).records


@asynchronous
async def test_explain_tells_the_story_of_a_plan_and_its_operation() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        await world.placement.Apply(ApplyRequest(plan_id=plan.id, reason="it is tested"))
        await world.loop.arbiter.settle()
        found = await world.ledger.Explain(ExplainRequest(id=plan.id))
        told = [line[line.index("  ") + 2 :] if line[:2] == "20" else line for line in found.lines]
        assert told == [
            "plan-1 proposed: an operator's plan",
            "plan-1 approved: it is tested",
            "plan-1 applying: it is tested",
            "plan-1 applied: op-1 succeeded",
            "op-1 (apply) succeeded: it is tested",
            "plan-1: 0 slots (0.0 MB) move; expected: the MoE layers of a step take 0.0% less "
            f"time; {plan.digest}",
            "op-1: 0.0 MB copied, longest pause 0 ms, 2 engines",
        ]
        assert [record.kind for record in found.records] == ["plan"] * 4 + ["operation"]
        of_it = await world.ledger.Explain(ExplainRequest(id="op-1"))
        assert of_it.records[-1].id == "plan-1"
        nothing = await refusal(world.ledger.Explain(ExplainRequest(id="op-9")))
        assert nothing == (
            NOT_FOUND,
            "nothing is known of 'op-9': `placer history` lists what is",
        )


@asynchronous
async def test_a_worker_says_where_its_engine_is_resized_and_how_far() -> None:
    changes = {"can_resize": True, "tp_size": 1, "most_ranks": 8}
    async with a_world() as world:
        await world.register(changes=changes, api=" http://host:8000 ")
        (member,) = world.loop.fleet.engine("tiny", "engine-1")
    worker = member.registration.worker
    assert member.registration.api == "http://host:8000"
    assert (worker.can_resize, worker.tp_size, worker.most_ranks) == (True, 1, 8)


@asynchronous
async def test_status_tells_where_ranks_take_requests() -> None:
    """Two tensor-parallel ranks are one data-parallel rank."""
    async with a_world() as world:
        for rank in range(4):
            changes = {"ep_size": 4, "ep_rank": rank, "tp_size": 2, "slots": 4}
            api = f"http://node-{rank // 2}:8000"
            await world.register(worker=f"worker-{rank}", changes=changes, api=api)
        await world.register(engine="engine-2")
        told = (await world.fleet.Status(StatusRequest())).pools[0].engines
        first, second = (
            [(one.address, list(one.ranks)) for one in each.endpoints] for each in told
        )
        assert first == [("http://node-0:8000", [0]), ("http://node-1:8000", [1])]
        assert second == []
