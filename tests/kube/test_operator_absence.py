"""A controller that is away for an hour, beside a real API server: in virtual time."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import pytest

from controller.kube.acting import WRITES
from controller.kube.cluster.api import Api
from controller.kube.known import Client
from controller.kube.objects import Kind
from controller.kube.operator import Operator, Options
from placer.channel import Settings
from placer.virtual_clock import VirtualClock
from tests.kube import worlds
from tests.kube.cluster import Cluster
from tests.kube.operators import approve, condition, plan_in
from tests.kube.stand_in import StandIn, serving

HERE, HOUR_S = "absence", 3600.0
FLEETS = ["approved", "deleted", "widened"]


class Elsewhere:
    """An API whose sockets are another event loop's, and whose answers take no time of this one."""

    def __init__(self, api: Api, loop: asyncio.AbstractEventLoop, clock: VirtualClock) -> None:
        self._api, self._loop, self._clock = api, loop, clock

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def ask(*words: Any) -> Any:
            with self._clock.busy():
                return await asyncio.wrap_future(self._do(getattr(self._api, name)(*words)))

        return ask

    async def list_pages(self, kind: Kind, namespace: str) -> AsyncIterator[Any]:
        async def whole() -> list[Any]:
            return [page async for page in self._api.list_pages(kind, namespace)]

        with self._clock.busy():
            pages = await asyncio.wrap_future(self._do(whole()))
        for page in pages:
            yield page

    async def watch(self, kind: Kind, namespace: str, version: str) -> AsyncIterator[Any]:
        here, events = asyncio.get_running_loop(), asyncio.Queue[Any]()

        async def whole() -> None:
            async for event in self._api.watch(kind, namespace, version):
                here.call_soon_threadsafe(events.put_nowait, event)

        watching = self._do(whole())
        try:
            while True:
                yield await events.get()
        finally:
            watching.cancel()

    def _do(self, what: Any) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(what, self._loop)


@contextmanager
def elsewhere(cluster: Cluster, clock: VirtualClock) -> Iterator[Any]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with mock.patch.dict("os.environ", KUBECONFIG=str(cluster.kubeconfig)):
        api = asyncio.run_coroutine_threadsafe(Api.open(), loop).result()
    try:
        yield Elsewhere(api, loop, clock)
    finally:
        asyncio.run_coroutine_threadsafe(api.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def written() -> float:
    """By this operator, so far."""
    [family] = WRITES.collect()
    return sum(one.value for one in family.samples if one.name.endswith("_total"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    """It stands still while a controller answers, too."""
    clock, ask = VirtualClock(time.time()), Client.ask

    async def timeless(client: Client, *words: Any) -> Any:
        with clock.busy():
            return await ask(client, *words)

    monkeypatch.setattr(Client, "ask", timeless)
    return clock


def test_an_hour_without_the_controller_is_told_once_and_then_all_is_done_that_was_wanted(
    crds: Cluster, clock: VirtualClock
) -> None:
    stand_in, gone = StandIn(), f"{HERE}.deleted"

    def seen(*words: str) -> Any:
        return asyncio.to_thread(crds.get, *words, "-n", HERE)

    async def become(reason: str) -> None:
        while {condition(one) for one in (await seen("moef"))["items"]} != {reason}:
            await clock.sleep(1.0)

    async def made(api: Api) -> None:
        for name in FLEETS:
            await worlds.served(api, stand_in, HERE, name)
        await worlds.make(api, HERE, FLEETS)

    def wished() -> None:
        approve(crds, plan_in(crds, HERE, "Proposed"))
        crds.kubectl("-n", HERE, "delete", "moef", "deleted")
        crds.kubectl("-n", HERE, "scale", "moef/widened", "--replicas=3")

    async def story(api: Any, address: str) -> None:
        operator = Operator(api, Options(address, [HERE], HERE, HERE, 0), Settings(), clock)
        operating = asyncio.create_task(operator.run())
        await become("Serving")
        stand_in.propose(f"{HERE}.approved")
        while not (await seen("mplan"))["items"]:
            await clock.sleep(1.0)
        await asyncio.to_thread(stand_in.away)
        await become("ControllerAway")
        told, calls = written(), stand_in.calls.total()
        await clock.sleep(HOUR_S / 2)
        assert written() == told
        await asyncio.to_thread(wished)
        await clock.sleep(HOUR_S / 2)
        assert stand_in.calls.total() == calls
        stand_in.serve(int(address.rpartition(":")[2]))
        await become("Serving")
        while stand_in.policies[gone].policy or not stand_in.engine:
            await clock.sleep(1.0)
        while (await seen("statefulset", "widened"))["spec"]["replicas"] != 3:
            await clock.sleep(1.0)
        operating.cancel()
        with suppress(asyncio.CancelledError):
            await operating

    crds.namespace(HERE)
    worlds.on(crds.kubeconfig, made)
    with serving(stand_in) as address, elsewhere(crds, clock) as api:
        clock.run(story(api, address))
    assert stand_in.engine == {f"apply sha256:{1:064x}": 1}
    assert stand_in.calls["Approve"] == stand_in.calls["DeletePolicy"] == 1
