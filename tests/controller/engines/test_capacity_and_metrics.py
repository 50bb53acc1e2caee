"""Where GPUs come from, and what engines say of their load."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from controller.engines.fleet_engines import FleetMetrics
from controller.engines.http_metrics import LIMIT, HttpMetrics
from controller.engines.in_memory import MemoryEngines
from controller.engines.memory_capacity import MemoryCapacity
from controller.fleet.workers import Fleet
from controller.ports import Capacity, EngineLostError, Stock
from controller.samples import Sample, expose
from placer.virtual_clock import VirtualClock
from tests.controller.tiny_pool import POOL, a_registration, asynchronous

SAMPLE = Sample(running=2.0, waiting=3.0, finished=4.0)


def a_capacity(clock: VirtualClock) -> Capacity:
    return MemoryCapacity(clock, limit=8, comes_s=30.0)


def test_what_is_asked_for_is_allocated_and_after_a_while_available() -> None:
    clock = VirtualClock()
    capacity = a_capacity(clock)

    async def life() -> None:
        assert await capacity.ready(POOL) == Stock()
        await capacity.ask(POOL, 4)
        assert await capacity.ready(POOL) == Stock(desired=4, allocated=4)
        await clock.sleep(29.0)
        await capacity.ask(POOL, 4)  # once more is no harm
        assert (await capacity.ready(POOL)).available == 0
        await clock.sleep(1.0)
        assert await capacity.ready(POOL) == Stock(4, 4, 4)

    clock.run(life())


def test_nobody_gets_what_others_have() -> None:
    clock = VirtualClock()
    capacity = a_capacity(clock)

    async def life() -> None:
        await capacity.ask(POOL, 6)
        await capacity.ask("code", 6)
        await clock.sleep(30.0)
        assert await capacity.ready("code") == Stock(desired=6, allocated=2, available=2)
        await capacity.release(POOL, 1)
        await capacity.ask("code", 7)
        await clock.sleep(30.0)
        assert (await capacity.ready("code")).available == 7

    clock.run(life())


def test_what_a_pool_has_already_is_there_and_others_do_not_get_it() -> None:
    clock = VirtualClock()
    capacity = MemoryCapacity(clock, limit=8, comes_s=30.0, has={POOL: 6})

    async def life() -> None:
        assert capacity.asked(POOL) == 0
        await capacity.ask(POOL, 4)
        assert await capacity.ready(POOL) == Stock(4, 6, 6)
        await capacity.ask("code", 6)
        await clock.sleep(30.0)
        assert (await capacity.ready("code")).available == 2

    clock.run(life())


def test_what_an_engine_computes_on_is_not_released() -> None:
    clock = VirtualClock()
    capacity = MemoryCapacity(clock, limit=8)

    async def life() -> None:
        await capacity.ask(POOL, 4)
        capacity.serve(POOL, active=3, traffic=2)
        await capacity.release(POOL, 1)
        assert await capacity.ready(POOL) == Stock(1, 3, 3, 3, 2)
        capacity.serve(POOL, active=1, traffic=1)
        await capacity.release(POOL, 1)
        assert await capacity.ready(POOL) == Stock(1, 1, 1, 1, 1)

    clock.run(life())


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        text, status = expose(SAMPLE).encode(), 200
        if self.path == "/large":
            text = b"#" * (LIMIT + 1)
        if self.path == "/elsewhere":
            status = 302
        self.send_response(status)
        self.send_header("Location", "/metrics")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def a_fleet(metrics: str, **more: Any) -> Fleet:
    fleet = Fleet(lambda pool: 60.0, VirtualClock())
    fleet.register(a_registration(metrics=metrics, **more))
    return fleet


@asynchronous
async def test_an_engine_is_read_where_it_registered(address: str) -> None:
    for path in ("", "/metrics"):
        assert await HttpMetrics(a_fleet(address + path)).sample(POOL, "e0") == SAMPLE


@asynchronous
async def test_whatever_else_answers_is_an_engine_that_is_lost(address: str) -> None:
    for metrics, why in (
        (f"{address}/elsewhere", "answers 302"),  # where it points to nobody goes
        (f"{address}/large", "bytes: is it /metrics"),
        ("http://127.0.0.1:1/metrics", "does not answer"),
        ("file:///etc/passwd", "is no address"),
        ("", "said no PLACER_METRICS"),
    ):
        with pytest.raises(EngineLostError, match=why):
            await HttpMetrics(a_fleet(metrics)).sample(POOL, "e0")
    with pytest.raises(EngineLostError, match="no engine"):
        await HttpMetrics(a_fleet(address)).sample(POOL, "e9")


@asynchronous
async def test_an_actor_says_it_itself(address: str) -> None:
    engines = MemoryEngines({})
    engines.samples[POOL, "e0"] = Sample(running=9.0)
    for actor, meant in (("there", 9.0), ("", 2.0)):
        fleet = a_fleet(address, actor=actor)
        doors = FleetMetrics(fleet, engines, HttpMetrics(fleet))
        assert (await doors.sample(POOL, "e0")).running == meant
    with pytest.raises(EngineLostError, match="e1"):
        await engines.sample(POOL, "e1")
