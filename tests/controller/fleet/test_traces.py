"""Requests of 2 layers, top-1, of 4 experts: a token has 4 bytes of experts."""

from typing import Any

import numpy as np
import pytest

from controller.config import Traces
from controller.fleet import traces
from controller.fleet.pools import WorkerId
from controller.fleet.traces import Request, SampledRequests, trace_of
from controller.fleet.workers import Fleet
from placer.virtual_clock import VirtualClock
from tests.builders import a_model
from tests.controller.tiny_pool import POOL, a_delta, a_registration, only

MODEL = a_model()
SETTINGS = {"chat": Traces(3, 60.0, True), "code": Traces(2, 10.0, True)}


def a_request(tokens: int = 2, phase: str = "decode", first_id: int = 0, **more: Any) -> Request:
    told = {"experts": 4, "token_ids": first_id + np.arange(tokens, dtype=np.uint32), **more}
    return Request(phase, expert_ids=np.zeros((tokens, 2, 1), dtype=np.uint16), **told)


def a_store(clock: VirtualClock | None = None) -> SampledRequests:
    return SampledRequests(SETTINGS.__getitem__, clock or VirtualClock())


def kept(store: SampledRequests, pool: str = "chat", phase: str = "mixed") -> list[int]:
    """The first vocabulary id of each, in the order in which they came."""
    found = [one.token_ids for _, one in store.of(pool, MODEL, phase)]
    return [int(ids[0]) for ids in found if ids is not None]


def test_of_each_pool_and_phase_the_newest_are_kept() -> None:
    clock = VirtualClock()
    store = a_store(clock)
    for number in range(5):
        clock.advance(1.0)
        store.add("chat", [a_request(first_id=number), a_request(1, "prefill", 10 + number)])
        store.add("code", [a_request(first_id=20 + number)])
    assert kept(store, "chat", "decode") == [2, 3, 4]
    assert kept(store, "chat", "prefill") == [12, 13, 14]
    assert kept(store, "chat") == [2, 12, 3, 13, 4, 14]
    assert kept(store, "code") == [23, 24]
    # Of a token 4 bytes of experts and 4 of its id.
    assert store.bytes == 8 * (3 * 2 + 3 * 1 + 2 * 2)


def test_bytes_are_bounded_by_pool_and_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "BYTES", 8 * 10)
    store = a_store()
    store.add("chat", [a_request(6, first_id=0), a_request(4, first_id=1)])
    store.add("code", [a_request(10, first_id=7)])
    assert kept(store) == [0, 1]
    store.add("chat", [a_request(1, first_id=2)])
    assert (kept(store), kept(store, "code")) == ([1, 2], [7])


def test_bytes_of_all_pools_are_bounded_and_one_that_is_full_lets_its_own_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traces, "ALL_BYTES", 8 * 10)
    store = a_store()
    store.add("chat", [a_request(8, first_id=1)])
    store.add("code", [a_request(2, first_id=2), a_request(1, first_id=3), a_request(8)])
    assert (kept(store), kept(store, "code"), store.bytes) == ([1], [], 8 * 8)


def test_a_request_that_no_answer_can_hold_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "ONE_BYTES", 8 * 2)
    store = a_store()
    store.add("chat", [a_request(3, first_id=1), a_request(2, first_id=2)])
    assert kept(store) == [2]


def test_requests_are_kept_as_long_as_the_pool_says_by_the_monotonic_clock() -> None:
    clock = VirtualClock()
    store = a_store(clock)
    store.add("chat", [a_request(first_id=1)])
    store.add("code", [a_request(first_id=2)])
    clock.advance(9.0)
    store.add("chat", [a_request(first_id=3)])
    clock.jump(3600.0)  # a wall clock that was put on ages nothing
    assert (kept(store), kept(store, "code")) == ([1, 3], [2])
    clock.advance(1.0)
    store.forget()
    assert (kept(store, "code"), store.bytes) == ([], 2 * 8 * 2)
    clock.advance(50.0)
    assert kept(store) == [3]
    clock.advance(9.0)
    assert (kept(store), store.bytes) == ([], 0)


def test_requests_of_another_model_of_that_pool_are_not_given_out() -> None:
    store = a_store()
    store.add("chat", [a_request(first_id=1), a_request(first_id=2, experts=8)])
    assert kept(store) == [1]


def test_a_trace_is_of_one_phase_and_has_vocabulary_ids_if_all_do() -> None:
    one, other = a_request(2, first_id=5), a_request(1, "prefill", 9)
    found = trace_of([one, other])
    assert (found.phase, found.seq_lens.tolist(), found.experts) == ("mixed", [2, 1], 4)
    assert found.token_ids is not None
    assert found.token_ids.tolist() == [5, 6, 9]
    assert trace_of([one]).phase == "decode"
    assert trace_of([one, a_request(token_ids=None)]).token_ids is None


def pushed(clock: VirtualClock, *seconds: float) -> tuple[Fleet, SampledRequests]:
    """A worker that counts 100 tokens at each second and hands over a request of 40 of them; the
    window reaches 20 s back, in halves that begin every 10."""
    fleet, store = Fleet(lambda _: 20.0, clock), SampledRequests(lambda _: Traces(9, 1e3), clock)
    fleet.register(a_registration())
    for number, second in enumerate(seconds, 1):
        clock.advance(second - clock.monotonic())
        fleet.push(WorkerId(POOL, "e0", "w0", 1), number, [a_delta([[25] * 4] * 2)])
        store.add(POOL, [a_request(40, first_id=int(second))])
    return fleet, store


@pytest.mark.parametrize(
    ("least", "told", "sequences"),
    [
        (40, "2 sampled requests from before its window", 2),
        (20, "2 sampled requests from before its window", 2),
        (10, "1 sampled request from before its window", 1),  # four times that is enough
        (81, "have 80 tokens < 81 (least_tokens)", 0),
    ],
)
def test_plans_are_judged_on_the_last_requests_of_before_their_window(
    least: int, told: str, sequences: int
) -> None:
    """At 25 s the window holds what was counted since the 10th second."""
    clock = VirtualClock()
    fleet, store = pushed(clock, 1.0, 9.0, 11.0, 25.0)
    group = only(fleet.pool(POOL))
    profile = group.profile("decode", clock.monotonic())
    assert profile is not None
    assert profile.tokens == 200  # of 11 and 25 s
    unseen = store.unseen(group, "decode", least)
    assert told in unseen.told
    assert (unseen.trace.sequences if unseen.trace else 0) == sequences
    assert unseen.trace is None or unseen.trace.token_ids is None


def test_a_window_without_traffic_is_judged_on_nothing() -> None:
    clock = VirtualClock()
    fleet, store = pushed(clock, 1.0, 9.0)
    group = only(fleet.pool(POOL))
    assert store.unseen(group, "prefill", 1).trace is None
