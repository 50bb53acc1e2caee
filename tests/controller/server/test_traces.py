"""Sampled requests on real servers: who is asked for them, what is kept, and who may read it."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from controller.config import Traces
from controller.ledger.ledger import LedgerFull
from controller.server.messages import sampled
from controller.server.messages.sampled import sampling
from placer.agent.grpc_sink import GrpcSink
from placer.agent.sampling import Sampling
from placer.channel import Settings, open_aio_channel
from placer.clock import SystemClock
from placer.files.documents import of_json
from placer.files.specs import shape_of
from placer.v1 import profile_pb2
from placer.v1.fleet_pb2 import ExplainRequest, HistoryRequest
from placer.v1.fleet_pb2_grpc import LedgerServiceStub
from placer.v1.profile_pb2_grpc import ProfileServiceStub
from placer.worker import Identity
from tests.agent.workers import a_recording, a_sequence, a_status, a_worker
from tests.builders import a_model
from tests.controller.server.tiny_server import (
    POLICY,
    Setting,
    World,
    a_count,
    a_push,
    a_world,
    an_id,
    refusal,
)
from tests.controller.server.tiny_service import AGENT, OPERATOR, WRONG, write
from tests.controller.tiny_pool import asynchronous, only

READER, BOTH = "readers-secret-001", "readers-secret-002"
TOKENS = (
    f"agent: [{AGENT}]\noperator: [{OPERATOR}, {BOTH}]\n"
    f"trace_reader: [{{token: {READER}, name: alice}}, {{token: {BOTH}, name: bob}}]\n"
)
DENIED = grpc.StatusCode.PERMISSION_DENIED
READ = "/placer.v1.ProfileService/ReadTraces"
PREFILL, DECODE = profile_pb2.PHASE_PREFILL, profile_pb2.PHASE_DECODE
WANTED = replace(POLICY, traces=Traces(100, 900.0, True))
# Of top-1: two requests, of 3 and 2 tokens; of the first, one is of the prompt.
IDS = [[[0], [1]], [[2], [2]], [[3], [0]], [[1], [1]], [[0], [3]]]


def a_trace(**changes: Any) -> Any:
    fields: dict[str, Any] = {
        "layers": 2, "top_k": 1, "seq_lens": [3, 2], "prompt_lens": [1, 0],
        "expert_ids": np.array(IDS, dtype="<u2").tobytes(),
        "token_ids": np.arange(70_000, 70_005, dtype="<u4").tobytes(),
    }  # fmt: skip
    return profile_pb2.Trace(**{**fields, **changes})


def a_sampled_push(sequence: int = 1, trace: Any = None, **id: Any) -> Any:
    return profile_pb2.PushRequest(
        id=an_id(**id), sequence=sequence, counts=[a_count()], trace=trace or a_trace()
    )


def kept(world: World) -> list[tuple[str, list[Any], list[int] | None]]:
    """Phase, experts and vocabulary ids of each."""
    return [
        (
            one.phase,
            one.expert_ids.tolist(),
            None if one.token_ids is None else one.token_ids.tolist(),
        )
        for _, one in world.loop.traces.of("tiny", a_model())
    ]


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens.yaml", TOKENS)


async def read(address: str, token: str, pool: str = "tiny", phase: Any = 0) -> list[Any]:
    async with open_aio_channel(address, Settings(token)) as channel:
        request = profile_pb2.ReadTracesRequest(pool=pool, phase=phase)
        return [answer async for answer in ProfileServiceStub(channel).ReadTraces(request)]


@asynchronous
async def test_no_agent_is_asked_to_sample_unless_the_pool_says_so() -> None:
    async with a_world() as world:
        answer = await world.register()
        assert not answer.HasField("sampling")
        assert await world.pushed(a_sampled_push()) == [(1, "")]
        assert kept(world) == []


@pytest.mark.parametrize("token_ids", [True, False])
@asynchronous
async def test_agents_are_asked_for_so_many_that_all_fill_the_store_in_time(
    token_ids: bool,
) -> None:
    """100 requests in 900 s: of one worker one in 9 s, of two each one in 18 s. One that records
    nothing counts for none."""
    async with a_world(Setting(replace(POLICY, traces=Traces(100, 900.0, token_ids)))) as world:
        first = (await world.register()).sampling
        second = (await world.register(engine="engine-2")).sampling
        third = (await world.register(worker="worker-1", changes={"records": False})).sampling
        assert [one.every_s for one in (first, second, third)] == [9.0, 18.0, 18.0]
        assert {one.token_ids for one in (first, second, third)} == {token_ids}
    assert sampling(Traces(1, 60.0), 0).every_s == 60.0


@asynchronous
async def test_requests_are_kept_by_phase_cut_where_their_prompts_end() -> None:
    async with a_world(Setting(WANTED)) as world:
        await world.register()
        assert await world.pushed(a_sampled_push()) == [(1, "")]
        assert kept(world) == [
            ("prefill", IDS[:1], [70_000]),
            ("decode", IDS[1:3], [70_001, 70_002]),
            ("decode", IDS[3:], [70_003, 70_004]),
        ]
        assert only(world.loop.fleet.pool("tiny")).tokens("decode") == 1200


@asynchronous
async def test_an_agent_of_today_hands_over_what_it_is_asked_for_with_where_prompts_end() -> None:
    async with a_world(Setting(WANTED)) as world:
        sink = GrpcSink(world.address, a_worker(), Identity("tiny", "e"), a_model(), SystemClock())
        tokens = [[[0], [1]], [[2], [2]], [[3], [0]]]
        recording = a_recording(decode=tokens, sampled=[a_sequence(tokens, 7, prompt=2)])
        await asyncio.to_thread(sink.report, a_status())
        assert sink.sampling == Sampling(9.0, token_ids=True)
        await asyncio.to_thread(sink.push, 1, recording)
        await asyncio.to_thread(sink.close)
        assert kept(world) == [("prefill", tokens[:2], [7, 8]), ("decode", tokens[2:], [9])]


@asynchronous
async def test_vocabulary_ids_that_the_pool_does_not_want_are_not_kept() -> None:
    """Agents of before send them to whoever asks for affinity."""
    policy = replace(POLICY, dispatch="dedup", traces=Traces(100, 900.0, False))
    async with a_world(Setting(policy)) as world:
        await world.register()
        assert await world.pushed(a_sampled_push()) == [(1, "")]
        assert [ids for _, _, ids in kept(world)] == [None] * 3


@asynchronous
async def test_agents_of_before_are_heard_whose_requests_are_of_no_known_phase() -> None:
    # As the release before wrote it: a trace of fields 1 to 5.
    trace = bytes.fromhex("0802 1001 1a02 0101 2208 0000 0100 0200 0200 2a08 7011 0100 7111 0100")
    data = a_push().SerializeToString() + b"\x2a" + bytes([len(trace)]) + trace
    async with a_world(Setting(WANTED)) as world:
        await world.register()
        stream = world.channel.stream_stream("/placer.v1.ProfileService/Push")
        (answer,) = [answer async for answer in stream(iter([data]))]
        assert profile_pb2.PushResponse.FromString(answer).refused == ""
        assert kept(world) == [("mixed", [[[0], [1]]], [70_000]), ("mixed", [[[2], [2]]], [70_001])]


@asynchronous
async def test_a_push_that_comes_again_leaves_its_requests_once() -> None:
    async with a_world(Setting(WANTED)) as world:
        await world.register()
        assert await world.pushed(a_sampled_push(), a_sampled_push()) == [(1, ""), (1, "")]
        assert len(kept(world)) == 3


@asynchronous
async def test_a_large_push_is_read_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.server.services.LIGHT", 10)
    async with a_world(Setting(WANTED)) as world:
        await world.register()
        assert await world.pushed(a_sampled_push()) == [(1, "")]
        assert len(kept(world)) == 3


MALFORMED = {
    "cut short": (a_trace(expert_ids=b"\0" * 19), "expert_ids has 19 bytes and not 20"),
    "ids cut short": (a_trace(token_ids=b"\0" * 19), "token_ids has 19 bytes and not 20"),
    "another model": (a_trace(layers=3), "sampled requests of 3 layers, top-1, but counts of 2"),
    "another top-k": (a_trace(top_k=2), "sampled requests of 2 layers, top-2, but counts of 2"),
    "no expert": (a_trace(expert_ids=b"\xff\xff" * 10), "expert id 65535 is outside 0..3"),
    "an empty one": (a_trace(seq_lens=[5, 0]), "every sequence must have a token or more"),
    "prompts": (a_trace(prompt_lens=[1]), "1 prompt_lens of 2 sampled requests"),
}


@pytest.mark.parametrize(("trace", "why"), MALFORMED.values(), ids=MALFORMED)
@asynchronous
async def test_requests_that_make_no_sense_are_refused_with_their_push(
    trace: Any, why: str
) -> None:
    async with a_world(Setting(WANTED)) as world:
        await world.register()
        (_, told), last = await world.pushed(a_sampled_push(1, trace), a_push(2))
        assert (why in told, "\n" in told, last) == (True, False, (2, "")), told
        assert kept(world) == []
        assert only(world.loop.fleet.pool("tiny")).tokens("decode") == 1200


@asynchronous
async def test_of_a_push_no_more_requests_are_taken_than_hold_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampled, "MOST", 1)
    async with a_world(Setting(WANTED)) as world:
        await world.register()
        assert await world.pushed(a_sampled_push()) == [(1, "")]
        assert [phase for phase, *_ in kept(world)] == ["prefill", "decode"]


@asynchronous
async def test_requests_without_counts_are_refused() -> None:
    async with a_world(Setting(WANTED)) as world:
        await world.register()
        push = profile_pb2.PushRequest(id=an_id(), sequence=1, trace=a_trace())
        assert await world.pushed(push) == [(1, "sampled requests without counts: push both")]


@asynchronous
async def test_a_reader_gets_all_that_is_kept_of_a_pool_or_of_one_phase(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampled, "PART", 1)  # an answer for each request
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        await world.pushed(a_sampled_push())
        both = await read(world.address, READER)
        assert [answer.phase for answer in both] == [PREFILL, DECODE, DECODE]
        decoded = await read(world.address, READER, phase=DECODE)
        assert [list(answer.trace.seq_lens) for answer in decoded] == [[2], [2]]
        ids = b"".join(answer.trace.token_ids for answer in decoded)
        assert np.frombuffer(ids, "<u4").tolist() == [70_001, 70_002, 70_003, 70_004]
        experts = b"".join(answer.trace.expert_ids for answer in decoded)
        assert np.frombuffer(experts, "<u2").reshape(4, 2, 1).tolist() == IDS[1:]
        assert shape_of(of_json(decoded[0].shape, "it")) == a_model()


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (OPERATOR, f"{READ} is for trace readers, and this is an operator's token: use a trace re"),
        (AGENT, f"{READ} is for trace readers, and this is an agent's token: use a trace reader's"),
    ],
)
@asynchronous
async def test_nobody_else_may_read_operators_neither(tokens: Path, token: str, why: str) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        code, told = await refusal(read(world.address, token))
        assert (code, why in told) == (DENIED, True), told
        assert (await refusal(read(world.address, WRONG)))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert (await world.ledger.History(HistoryRequest())).records == []


@asynchronous
async def test_without_tokens_nobody_may_read() -> None:
    async with a_world(Setting(WANTED)) as world:
        await world.register()
        code, told = await refusal(read(world.address, ""))
        assert code is DENIED
        assert "is for trace readers, whom the controller knows by a trace reader's token" in told


@asynchronous
async def test_a_trace_reader_may_do_nothing_else(tokens: Path) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=READER)) as world:
        for call in (
            world.register(),
            world.pushed(a_push()),
            world.ledger.History(HistoryRequest()),
        ):
            code, told = await refusal(call)
            assert (code, "and this is a trace reader's token" in told) == (DENIED, True), told


@asynchronous
async def test_each_reading_is_written_down_with_who_when_and_what(tokens: Path) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        assert await read(world.address, READER) == []
        await world.pushed(a_sampled_push())
        await read(world.address, READER)
        await read(world.address, BOTH, phase=DECODE)
        async with open_aio_channel(world.address, Settings(BOTH)) as channel:  # an operator's, too
            last, second, first = (
                await LedgerServiceStub(channel).History(HistoryRequest())
            ).records
        assert [one.reason for one in (first, second, last)] == [
            "alice read sampled requests: there were none",
            "alice read sampled requests: 2 of decode and 1 of prefill, with token ids",
            "bob read sampled requests: 2 of decode, with token ids",
        ]
        assert (last.kind, last.id, last.pool) == ("reading", "reading-3", "tiny")
        assert abs(last.at_s - world.loop.ledger.clock.now()) < 60.0
        told = of_json(last.body, "it")
        assert told == {"who": "bob", "requests": {"decode": 2}, "token_ids": True}
        lines = (await world.ledger.Explain(ExplainRequest(id="reading-3"))).lines
        assert "reading-3 reading: bob read sampled requests: 2 of" in lines[0]


@asynchronous
async def test_what_cannot_be_written_down_is_not_given_out(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_world(Setting(WANTED, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        await world.pushed(a_sampled_push())

        def full(*_: Any, **__: Any) -> Any:
            raise LedgerFull("the disk is full: free some space")

        monkeypatch.setattr(world.loop.ledger, "write", full)
        code, _ = await refusal(read(world.address, READER))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


@asynchronous
async def test_a_pool_that_samples_nothing_and_one_that_is_not_there_are_named(
    tokens: Path,
) -> None:
    async with a_world(Setting(POLICY, tokens=tokens, token=OPERATOR)) as world:
        await world.register()
        assert await refusal(read(world.address, READER)) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "tiny samples no requests: set traces.requests of the pool",
        )
        code, told = await refusal(read(world.address, READER, pool="no"))
        assert (code, told) == (grpc.StatusCode.NOT_FOUND, "no pool 'no': there is tiny")
