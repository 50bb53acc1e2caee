"""Policies that are put while the controller runs."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from placer.channel import Settings, open_aio_channel
from placer.topology import preset
from placer.v1 import fleet_pb2, policy_pb2
from placer.v1.policy_pb2_grpc import PolicyServiceStub
from tests.controller.server.tiny_server import POLICY, Setting, World, a_world, refusal
from tests.controller.server.tiny_service import AGENT, OPERATOR, TOKENS, write
from tests.controller.tiny_pool import asynchronous

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


async def put(world: World, policy: str, version: int = 0, **more: Any) -> Any:
    asked = {"pool": "tiny", "policy": policy, "version": version, **more}
    return await world.policy.PutPolicy(policy_pb2.PutPolicyRequest(**asked))


async def read(world: World, pool: str = "tiny") -> Any:
    return await world.policy.GetPolicy(policy_pb2.GetPolicyRequest(pool=pool))


async def delete(world: World, version: int) -> Any:
    request = policy_pb2.DeletePolicyRequest(pool="tiny", version=version, reason="not needed")
    return await world.policy.DeletePolicy(request)


@asynchronous
async def test_what_is_put_is_in_force_and_says_the_rest_as_the_default_does() -> None:
    async with a_world() as world:
        await world.traffic()
        await world.loop.tick()
        answer = await put(world, "mode: automatic\ncooldown_s: 7\n", reason="at night")
        assert json.loads(answer.policy) == {"mode": "automatic", "cooldown_s": 7.0}
        assert answer.version == 1
        policy = world.loop.config.of("tiny")
        assert (policy.mode, policy.cooldown_s) == ("automatic", 7.0)
        assert (policy.topology, policy.window_s) == (POLICY.topology, POLICY.window_s)
        assert world.loop.config.of("other") == POLICY
        await world.loop.tick()
        await world.loop.arbiter.settle()
        assert world.loop.arbiter.history.last_change("tiny") is not None
        known = await read(world)
        assert (known.policy, known.version, known.reason) == (answer.policy, 1, "at night")


@asynchronous
async def test_a_window_that_is_put_is_that_of_the_traffic_already_counted() -> None:
    async with a_world() as world:
        await world.traffic()
        await put(world, "window_s: 60")
        await world.loop.tick()
        windows = world.loop.fleet.pool("tiny").windows
        assert {one.span_s for by_phase in windows.values() for one in by_phase.values()} == {60.0}


@asynchronous
async def test_fronts_hear_the_share_of_the_control_group_that_is_put() -> None:
    async with a_world() as world:
        await world.traffic()
        asked = fleet_pb2.StatusRequest(pool="tiny")
        assert not (await world.fleet.Status(asked)).pools[0].HasField("control")
        await put(world, "control: 0")
        [pool] = (await world.fleet.Status(asked)).pools
        assert pool.HasField("control")
        assert (pool.control, pool.experts) == (0.0, 4)


@asynchronous
async def test_of_two_that_saw_the_same_version_the_second_is_refused() -> None:
    async with a_world() as world:
        assert (await put(world, "cooldown_s: 1")).version == 1
        for version in (0, 2):
            assert await refusal(put(world, "cooldown_s: 2", version)) == (
                PRECONDITION,
                f"the policy of tiny is at version 1 and not {version}: somebody was first, read "
                "it again",
            )
        assert (await put(world, "cooldown_s: 2", 1)).version == 2
        assert world.loop.config.of("tiny").cooldown_s == 2


@asynchronous
async def test_the_same_key_is_the_same_version() -> None:
    async with a_world() as world:
        first = await put(world, "cooldown_s: 1", idempotency_key="k1")
        await put(world, "cooldown_s: 2", 1)
        assert await put(world, "cooldown_s: 1", idempotency_key="k1") == first
        assert world.loop.config.of("tiny").cooldown_s == 2


@asynchronous
async def test_what_is_deleted_is_as_in_the_file_and_may_be_put_again() -> None:
    async with a_world() as world:
        await put(world, "cooldown_s: 1")
        assert (await delete(world, 1)).version == 2
        assert world.loop.config.of("tiny") == POLICY
        known = await read(world)
        assert (known.policy, known.version) == ("", 2)
        assert (await world.policy.ListPolicies(policy_pb2.ListPoliciesRequest())).policies == []
        code, told = await refusal(delete(world, 2))
        assert (code, told) == (
            PRECONDITION,
            "no policy was put for 'tiny': the file's is in force",
        )
        assert (await put(world, "cooldown_s: 2", 0)).version == 3


@asynchronous
async def test_a_controller_that_starts_again_knows_them(tmp_path: Path) -> None:
    setting = Setting(ledger=tmp_path / "ledger.db")
    async with a_world(setting) as world:
        await put(world, "topology: {preset: h100, gpus: 16, nodes: 2}")
        await put(world, "cooldown_s: 3", pool="a")
        await put(world, "cooldown_s: 3", pool="b")
        await world.policy.DeletePolicy(policy_pb2.DeletePolicyRequest(pool="b", version=1))
    async with a_world(setting) as world:
        assert world.loop.config.of("tiny").topology == preset("h100").resized(16, 2)
        assert world.loop.config.of("b") == POLICY
        listed = (await world.policy.ListPolicies(policy_pb2.ListPoliciesRequest())).policies
        assert [(one.pool, one.version) for one in listed] == [("a", 1), ("tiny", 1)]


@asynchronous
async def test_one_that_is_not_valid_any_more_leaves_the_file_in_force_and_is_told(
    tmp_path: Path,
) -> None:
    setting = Setting(ledger=tmp_path / "ledger.db")
    async with a_world(setting) as world:
        await put(world, "cooldown_s: 3")
        policies = world.loop.ledger.records
        (record,) = policies.newest("policy")
        broken = {"settings": {"cooldown_s": "long"}, "key": ""}
        policies._connection.execute(
            "UPDATE records SET body = ? WHERE number = ?", (json.dumps(broken), record.number)
        )
    async with a_world(setting) as world:
        assert world.loop.config.of("tiny") == POLICY
        assert "the policy: cooldown_s" in world.loop.told()["policy tiny"]
        assert (await put(world, "cooldown_s: 4", 1)).version == 2
        assert "policy tiny" not in world.loop.told()


REFUSED = {
    "mode: eager": "the policy: mode: input should be 'advisory' or 'automatic' (it has 'eager')",
    "autoscal: {}": "the policy: autoscal: there is no such key: did you mean 'autoscale'?",
    "hours: ['1-2']": "hours '1-2': write them as 22:00-06:00, in UTC",
    "autoscale: {ranks: [4, 2]}": "autoscale: ranks are 4 to 2: write the smaller first",
    "optimizer: nope": "unknown optimizer 'nope': did you mean 'linear'?",
    "[1]": "the policy is a list: write keys and values, see docs/controller.md",
    "mode: [": "the policy is not YAML: ",
    "topology: {preset: h100}": "the policy: topology.gpus: field required",
    "topology: /etc/passwd": "the policy: topology: no preset is called '/etc/passwd': name one",
    "#" * 70_000: "policy has 70,000 characters: give 65,536 at most",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:20])
@asynchronous
async def test_what_is_no_policy_is_refused_by_its_field_and_changes_nothing(text: str) -> None:
    async with a_world() as world:
        code, told = await refusal(put(world, text))
        assert code is INVALID
        assert told.startswith(REFUSED[text])
        assert world.loop.config.of("tiny") == POLICY
        assert (await read(world)).version == 0


@asynchronous
async def test_a_policy_is_for_a_pool() -> None:
    async with a_world() as world:
        code, told = await refusal(put(world, "", pool=""))
        assert (code, "give its name" in told) == (INVALID, True)


@asynchronous
async def test_policies_are_for_operators(tmp_path: Path) -> None:
    tokens = write(tmp_path / "tokens.yaml", TOKENS)
    async with a_world(Setting(tokens=tokens, token=OPERATOR)) as world:
        await put(world, "cooldown_s: 3")
        async with open_aio_channel(world.address, Settings(AGENT)) as channel:
            stub = PolicyServiceStub(channel)
            for call in (
                stub.PutPolicy(policy_pb2.PutPolicyRequest(pool="tiny", policy="")),
                stub.GetPolicy(policy_pb2.GetPolicyRequest(pool="tiny")),
                stub.ListPolicies(policy_pb2.ListPoliciesRequest()),
                stub.DeletePolicy(policy_pb2.DeletePolicyRequest(pool="tiny", version=1)),
            ):
                code, _ = await refusal(call)
                assert code is grpc.StatusCode.PERMISSION_DENIED
