"""ProfileService: what is counted, what is not, and what the worker hears of it."""

import asyncio
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from controller.server import serve
from placer.v1 import profile_pb2
from tests.controller.server.tiny_server import (
    HOT,
    POLICY,
    Setting,
    World,
    a_count,
    a_push,
    a_world,
    an_id,
    refusal,
    until,
)
from tests.controller.tiny_pool import asynchronous, only

NOT_FOUND = grpc.StatusCode.NOT_FOUND
ONES = [[1, 1, 1, 1], [1, 1, 1, 1]]


def counted(world: World, phase: str = "decode") -> tuple[int, list[Any]]:
    """Tokens and load of the pool's window."""
    pool = world.loop.fleet.pool("tiny")
    profile = only(pool).profile(phase, world.loop.ledger.clock.monotonic())
    return (0, []) if profile is None else (int(profile.tokens), profile.load.tolist())


@asynchronous
async def test_pushes_are_counted_exactly_and_acknowledged_by_number() -> None:
    async with a_world() as world:
        await world.register()
        pushes = [a_push(1), a_push(2, [a_count(ONES)]), a_push(3, [a_count(ONES)])]
        assert await world.pushed(*pushes) == [(1, ""), (2, ""), (3, "")]
        assert counted(world) == (1208, (np.array(HOT) + 2).tolist())


@asynchronous
async def test_counts_of_any_size_and_of_both_phases_are_kept_apart() -> None:
    async with a_world() as world:
        await world.register()
        large = [[2**32 - 1, 2**32 - 1, 0, 1], [2**32 - 1, 0, 2**31, 2**31]]
        decode = a_count(large, tokens=2**34)
        prefill = a_count(ONES, phase=profile_pb2.PHASE_PREFILL)
        assert await world.pushed(a_push(1, [decode, prefill])) == [(1, "")]
        assert counted(world, "decode") == (2**34, large)
        assert counted(world, "prefill") == (4, ONES)


SHORT = a_count(load=b"\0" * 31)
MALFORMED = {
    "cut short": (SHORT, "load has 31 bytes and not 32"),
    "too long": (a_count(load=b"\0" * 36), "load has 36 bytes and not 32"),
    "no phase": (a_count(phase=0), "phase 0: it is prefill or decode"),
    "a phase of tomorrow": (a_count(phase=7), "phase 7: it is prefill or decode"),
    "no layers": (a_count(layers=0, load=b""), "0 layers x 4 experts"),
    "no experts": (a_count(experts=0, load=b""), "2 layers x 0 experts"),
    "as large as nothing is": (a_count(layers=2**32 - 1), "4294967295 layers x 4 experts"),
    "top-0": (a_count(top_k=0), "top-0"),
    "top-5 of 4": (a_count(top_k=5), "top-5"),
    "no tokens": (a_count(tokens=0), "0 tokens, top-1, but layer 0 counts 1200 choices"),
    "too few tokens": (a_count(tokens=1199), "1199 tokens, top-1, but layer 0 counts 1200"),
    "no choices": (a_count([[0] * 4] * 2, tokens=9), "9 tokens, top-1, but layer 0 counts 0"),
    "too many": (a_count(tokens=2**64 - 1), "tokens is 18446744073709551615: at most"),
    "transitions": (
        a_count(transitions=b"\0" * 63, coactivation=b"\0" * 128),
        "transitions has 63 bytes and not 64",
    ),
    "coactivation": (
        a_count(transitions=b"\0" * 64, coactivation=b"\0" * 127),
        "coactivation has 127 bytes and not 128",
    ),
    "another model": (a_count([[1, 1, 1]] * 2), "2 layers x 3 experts, top-1, in a pool of 2 x 4"),
    "another top-k": (a_count(top_k=2), "top-2, in a pool of 2 x 4, top-1"),
}


@pytest.mark.parametrize(("count", "reason"), MALFORMED.values(), ids=MALFORMED)
@asynchronous
async def test_a_push_that_makes_no_sense_is_refused_whole_and_the_stream_goes_on(
    count: Any, reason: str
) -> None:
    async with a_world() as world:
        await world.register()
        good, other = a_count(ONES), a_count(ONES, phase=profile_pb2.PHASE_PREFILL)
        (first, told), last = await world.pushed(a_push(1, [other, count]), a_push(2, [good]))
        assert (first, last) == (1, (2, ""))
        assert reason in told
        assert "\n" not in told
        assert counted(world) == (4, ONES)


@pytest.mark.parametrize(
    ("window_s", "steps", "reason"),
    [
        (5.0, {"phase": 0, "count": 1, "seconds": 1.0}, "phase 0: it is prefill or decode"),
        (5.0, {"phase": 2, "count": 1, "seconds": float("nan")}, "1 steps took nan s of 5 s"),
        (5.0, {"phase": 2, "count": 1, "seconds": -1.0}, "1 steps took -1 s of 5 s"),
        (5.0, {"phase": 2, "count": 1, "seconds": 1e300}, "seconds is 1e+300: at most"),
        (5.0, {"phase": 2, "count": 2**60, "seconds": 1.0}, "steps is 1152921504606846976"),
        (0.0, {"phase": 2, "count": 1, "seconds": 1.0}, "1 steps took 1 s of 0 s"),
        (1e300, {"phase": 2, "count": 1, "seconds": 1.0}, "window_s is 1e+300: at most"),
    ],
)
@asynchronous
async def test_steps_that_make_no_sense_are_refused_with_their_push(
    window_s: float, steps: dict[str, Any], reason: str
) -> None:
    async with a_world() as world:
        await world.register()
        push = a_push(1, [a_count(ONES)])
        push.window_s = window_s
        push.steps.add(**steps)
        (_, told), last = await world.pushed(push, a_push(2, [a_count(ONES)]))
        assert reason in told
        assert last == (2, "")
        assert counted(world) == (4, ONES)
        assert only(world.loop.fleet.pool("tiny")).pace("decode") is None


@asynchronous
async def test_numbers_that_come_again_or_late_are_acknowledged_and_not_counted() -> None:
    async with a_world() as world:
        await world.register()
        numbers = [1, 1, 3, 2, 3]  # 2 is late, and taken for lost
        answers = await world.pushed(*[a_push(number, [a_count(ONES)]) for number in numbers])
        assert answers == [(number, "") for number in numbers]
        assert counted(world)[0] == 8
        assert world.loop.fleet.pool("tiny").members["engine-1", "worker-0"].lost == 1


@pytest.mark.parametrize(
    ("number", "why"), [(0, "counted from 1"), (2**64 - 1, "sequence is 18446744073709551615")]
)
@asynchronous
async def test_a_number_that_cannot_be_is_refused(number: int, why: str) -> None:
    async with a_world() as world:
        await world.register()
        (answer,) = await world.pushed(a_push(number))
        assert (answer[0], why in answer[1]) == (number, True)
        assert await world.pushed(a_push(1)) == [(1, "")]


@pytest.mark.parametrize("push", [a_push(), a_push(counts=[SHORT])], ids=["good", "cut short"])
@asynchronous
async def test_who_did_not_register_is_told_and_may_open_the_stream_again(push: Any) -> None:
    async with a_world(Setting(replace(POLICY, dispatch="dedup"))) as world:
        told = await refusal(world.pushed(push))
        assert told == (NOT_FOUND, "worker-0 of engine-1 in tiny must register first")
        await world.register()
        assert await world.pushed(a_push()) == [(1, "")]
        assert counted(world)[0] == 1200


@asynchronous
async def test_a_push_beyond_the_limit_ends_its_own_stream_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "PUSH_BYTES", 4096)

    async with a_world() as world:
        await world.register()
        await world.register(engine="engine-2")
        other = world.profile.Push()
        await other.write(a_push(1, engine="engine-2"))
        assert (await other.read()).sequence == 1
        code, _ = await refusal(world.pushed(a_push(1, [a_count(transitions=b"\0" * 5000)])))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await other.write(a_push(2, engine="engine-2"))
        assert (await other.read()).sequence == 2
        await other.done_writing()
        assert await world.pushed(a_push(1)) == [(1, "")]
        assert counted(world)[0] == 3600


@asynchronous
async def test_a_worker_that_started_again_counts_from_1_and_its_old_self_is_not_heard() -> None:
    async with a_world() as world:
        await world.register()
        await world.pushed(a_push(1), a_push(2))
        assert (await world.register()).sequence == 2
        assert (await world.register(incarnation=2)).sequence == 0
        assert await world.pushed(a_push(1, incarnation=2)) == [(1, "")]
        assert (await refusal(world.pushed(a_push(3))))[0] is NOT_FOUND
        old = await refusal(world.register())
        assert old == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "worker-0 of engine-1 was started again since",
        )
        assert counted(world)[0] == 3600


@asynchronous
async def test_two_streams_of_one_worker_count_each_number_once() -> None:
    async with a_world() as world:
        await world.register()
        pushes = [a_push(number, [a_count(ONES)]) for number in range(1, 21)]
        for answers in await asyncio.gather(world.pushed(*pushes), world.pushed(*pushes)):
            assert answers == [(number, "") for number in range(1, 21)]
        assert counted(world)[0] == 80


@asynchronous
async def test_a_client_that_vanishes_between_pushes_leaves_what_was_counted() -> None:
    async with a_world() as world:
        await world.register()
        stream = world.profile.Push()
        await stream.write(a_push(1))
        await stream.read()
        stream.cancel()
        assert await world.pushed(a_push(1), a_push(2)) == [(1, ""), (2, "")]
        assert counted(world)[0] == 2400


@pytest.mark.parametrize(
    ("dispatch", "asked"), [("allgather", [False, False]), ("dedup", [True, False])]
)
@asynchronous
async def test_affinity_is_asked_of_one_worker_where_tokens_travel_by_it(
    dispatch: Any, asked: list[bool]
) -> None:
    async with a_world(Setting(replace(POLICY, dispatch=dispatch))) as world:
        told = []
        for engine in ("engine-1", "engine-2"):
            await world.register(engine=engine)
            request = profile_pb2.PushRequest(id=an_id(engine), sequence=1, counts=[a_count(ONES)])
            told += [answer.send_affinity async for answer in world.profile.Push(iter([request]))]
        assert told == asked


@asynchronous
async def test_affinity_of_some_tokens_is_taken_for_that_of_all() -> None:
    async with a_world(Setting(replace(POLICY, dispatch="dedup"))) as world:
        await world.register()
        await world.pushed(a_push(1, [with_pairs()]), a_push(2, [a_count(ONES)]))
        transitions = counted_transitions(world)
        assert transitions is not None
        assert transitions.tolist() == [(2 * STAYS).tolist()]


STAYS, ALONE = np.eye(4), np.zeros((2, 4, 4))


def with_pairs(transitions: Any = STAYS, coactivation: Any = ALONE) -> Any:
    """Of ONES; each token takes the same expert in both layers, and no second one."""
    pairs = {"transitions": transitions, "coactivation": coactivation}
    return a_count(ONES, **{name: one.astype("<u4").tobytes() for name, one in pairs.items()})


def counted_transitions(world: World) -> Any:
    profile = only(world.loop.fleet.pool("tiny")).profile(
        "decode", world.loop.ledger.clock.monotonic()
    )
    assert profile is not None
    return profile.transitions


@asynchronous
async def test_affinity_that_nobody_asked_for_is_left_out() -> None:
    async with a_world() as world:
        await world.register()
        assert await world.pushed(a_push(1, [with_pairs()])) == [(1, "")]
        assert counted_transitions(world) is None
        assert counted(world) == (4, ONES)


@pytest.mark.parametrize(
    ("count", "why"),
    [
        (with_pairs(np.full(16, 2**32 - 1)), "68719476720 transitions in layer 0, of which there"),
        (
            with_pairs(STAYS[[0, 0, 2, 3]]),
            "2 transitions to expert 0 in layer 0, of which there can be 1",
        ),
        (with_pairs(coactivation=np.ones(32)), "4 co-activations of expert 0 in layer 0, of which"),
    ],
)
@asynchronous
async def test_affinity_that_the_load_cannot_have_is_refused_as_loads_are(
    count: Any, why: str
) -> None:
    async with a_world(Setting(replace(POLICY, dispatch="dedup"))) as world:
        await world.register()
        (_, told), last = await world.pushed(a_push(1, [count]), a_push(2, [with_pairs()]))
        assert why in told
        assert last == (2, "")
        assert counted_transitions(world).sum() == 4


@asynchronous
async def test_a_server_that_stops_ends_the_streams() -> None:
    async with a_world() as world:
        await world.register()
        stream = world.profile.Push()
        await stream.write(a_push(1))
        await stream.read()
        await world.server.stop(grace=None)
        await until(stream.done)
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE
