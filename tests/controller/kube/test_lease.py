"""One of several is active, in virtual time."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from controller.kube.cluster.api import ApiError
from controller.kube.cluster.lease import DURATION_S, RENEW_S, Lease, LeaseLostError
from placer.virtual_clock import VirtualClock
from tests.controller.kube.tiny_api import TinyApi


def in_time(test: Callable[[VirtualClock, TinyApi], Coroutine[Any, Any, None]]) -> Any:
    def run() -> None:
        clock = VirtualClock()
        clock.run(test(clock, TinyApi()))

    run.__name__ = test.__name__
    return run


def lease(api: TinyApi, clock: VirtualClock, holder: str) -> Lease:
    return Lease(api, "moe", "operator", holder, clock)  # type: ignore[arg-type]


@in_time
async def test_the_first_has_it_at_once_and_keeps_it(clock: VirtualClock, api: TinyApi) -> None:
    first, second = lease(api, clock, "first"), lease(api, clock, "second")
    await first.acquire()
    renewing = asyncio.create_task(first.renew())
    waiting = asyncio.create_task(second.acquire())
    await clock.sleep(600)
    assert first.is_held
    assert not waiting.done()
    assert api.asked.count("replace") == 600 / RENEW_S - 1
    for task in (renewing, waiting):
        task.cancel()


@in_time
async def test_another_has_it_within_twenty_seconds_of_silence(
    clock: VirtualClock, api: TinyApi
) -> None:
    first, second = lease(api, clock, "first"), lease(api, clock, "second")
    await first.acquire()
    await second.acquire()
    assert DURATION_S < clock.monotonic() < 20
    assert not first.is_held
    with pytest.raises(LeaseLostError, match="was not renewed for 15 s"):
        first.check()


@in_time
async def test_who_comes_back_to_a_lease_of_another_ends(clock: VirtualClock, api: TinyApi) -> None:
    first, second = lease(api, clock, "first"), lease(api, clock, "second")
    await first.acquire()
    await second.acquire()
    with pytest.raises(LeaseLostError):
        await first.renew()
    assert api.objects["operator"]["spec"]["holderIdentity"] == "second"
    assert api.objects["operator"]["spec"]["leaseTransitions"] == 2


@in_time
async def test_who_ends_in_order_leaves_it_to_the_next(clock: VirtualClock, api: TinyApi) -> None:
    first, second = lease(api, clock, "first"), lease(api, clock, "second")
    await first.acquire()
    await first.release()
    await second.acquire()
    assert clock.monotonic() < 2


@in_time
async def test_who_ends_after_it_was_frozen_leaves_it_too_unless_another_has_it(
    clock: VirtualClock, api: TinyApi
) -> None:
    first, second = lease(api, clock, "first"), lease(api, clock, "second")
    await first.acquire()
    await clock.sleep(DURATION_S + 1)
    await first.release()
    await second.acquire()
    assert clock.monotonic() == DURATION_S + 1

    third = lease(api, clock, "third")
    await third.acquire()
    await second.release()
    assert api.objects["operator"]["spec"]["holderIdentity"] == "third"


@in_time
async def test_the_same_pod_started_again_goes_on(clock: VirtualClock, api: TinyApi) -> None:
    await lease(api, clock, "pod-0").acquire()
    await lease(api, clock, "pod-0").acquire()
    assert clock.monotonic() == 0
    assert api.objects["operator"]["spec"]["leaseTransitions"] == 1


@in_time
async def test_a_server_that_is_away_for_a_moment_costs_nothing(
    clock: VirtualClock, api: TinyApi
) -> None:
    first = lease(api, clock, "first")
    await first.acquire()
    renewing = asyncio.create_task(first.renew())
    api.refuses = [ApiError(0, "no answer")] * 5
    await clock.sleep(60)
    assert first.is_held
    renewing.cancel()


@in_time
async def test_a_lease_that_somebody_deletes_is_made_again(
    clock: VirtualClock, api: TinyApi
) -> None:
    first = lease(api, clock, "first")
    await first.acquire()
    renewing = asyncio.create_task(first.renew())
    del api.objects["operator"]
    await clock.sleep(60)
    assert first.is_held
    assert api.objects["operator"]["spec"]["holderIdentity"] == "first"
    renewing.cancel()


@in_time
async def test_a_server_that_stays_away_ends_it(clock: VirtualClock, api: TinyApi) -> None:
    first = lease(api, clock, "first")
    await first.acquire()
    api.refuses = [ApiError(0, "no answer")] * 1000
    with pytest.raises(LeaseLostError):
        await first.renew()
    assert clock.monotonic() < 20
