"""The agent's own sink against the real server, which goes away and comes back."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.migration.commands import Stage
from placer.agent import streams
from placer.agent.grpc_sink import GrpcSink
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.plan import Plan
from placer.worker import Identity
from tests.agent.workers import a_recording, a_status, a_worker
from tests.builders import a_model, a_placement
from tests.controller.server.tiny_server import IN_ORDER, SWAPPED, Setting, World, a_world
from tests.controller.tiny_pool import only

PROMPT = [[[0], [1]], [[0], [2]], [[3], [1]]]  # 3 tokens, 2 layers, top-1
GENEROUS_S = 30.0


class Served:
    """A world on a thread, so that a sink may block; ``stop`` and ``start`` keep its address."""

    def __init__(self, ledger: Path) -> None:
        self._setting, self.world = ledger, None
        self._address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(ready)))
        self._thread.start()
        assert ready.wait(GENEROUS_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def tell(self, doing: Callable[[World], Any]) -> Any:
        """What comes of it on the server's own thread."""

        async def told() -> Any:
            found = doing(self._world)
            return await found if asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(told(), self._loop).result(GENEROUS_S)

    @property
    def tokens(self) -> int:
        def counted(world: World) -> int:
            return sum(one.tokens for one in only(world.loop.fleet.pool("tiny")).windows.values())

        return int(self.tell(counted))

    @property
    def address(self) -> str:
        return self._address

    async def _run(self, ready: threading.Event) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with a_world(Setting(ledger=self._setting, address=self._address)) as world:
            self._world, self._address = world, world.address
            ready.set()
            await self._over.wait()


@pytest.fixture(autouse=True)
def _plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "TOKEN_FILE", "TLS_CA", "TLS_CERT", "TLS_KEY"):
        monkeypatch.delenv(f"PLACER_{name}", raising=False)
    monkeypatch.setattr(streams, "POLL_S", 0.05)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    found = Served(tmp_path / "ledger.db")
    yield found
    found.stop()


def a_sink(served: Served, rank: int = 0) -> GrpcSink:
    identity = Identity("tiny", "engine-1")
    return GrpcSink(served.address, a_worker(rank), identity, a_model(), SystemClock())


@pytest.fixture
def sink(served: Served) -> Iterator[GrpcSink]:
    found = GrpcSink(
        served.address, a_worker(), Identity("tiny", "engine-1"), a_model(), SystemClock()
    )
    yield found
    found.close()


def until(true: Callable[[], Any]) -> Any:
    late = time.monotonic() + GENEROUS_S
    while not (found := true()):
        assert time.monotonic() < late, "it did not happen"
        time.sleep(0.01)
    return found


def works(call: Callable[[], Any]) -> bool:
    try:
        call()
    except PlacerError:
        return False
    return True


def test_a_worker_registers_then_pushes_and_all_is_counted(served: Served, sink: GrpcSink) -> None:
    with pytest.raises(PlacerError, match="worker-0 of engine-1 in tiny must register first"):
        sink.push(1, a_recording(PROMPT))
    sink.report(a_status())
    for number in (1, 2, 3):
        sink.push(number, a_recording(PROMPT, [[[2], [2]]]))
    assert served.tokens == 12


def test_numbers_go_on_after_the_controller_started_again(served: Served, sink: GrpcSink) -> None:
    sink.report(a_status())
    for number in (1, 2):
        sink.push(number, a_recording(PROMPT))
    assert served.tokens == 6
    served.stop()
    assert not works(lambda: sink.push(3, a_recording(PROMPT)))
    served.start()
    until(lambda: works(lambda: sink.report(a_status())))
    sink.push(3, a_recording(PROMPT))
    sink.push(4, a_recording(PROMPT))
    assert served.tokens in (6, 12)  # with the window of before, if it was kept

    def lost(world: World) -> int:
        return world.loop.fleet.pool("tiny").members["engine-1", "worker-0"].lost

    assert served.tell(lost) == 0


def test_what_was_counted_and_not_heard_to_be_is_counted_once(
    served: Served, sink: GrpcSink
) -> None:
    sink.report(a_status())
    sink.push(1, a_recording(PROMPT))
    sink.push(1, a_recording(PROMPT))  # as if the acknowledgement had been lost
    sink._end_pushes()
    sink.push(1, a_recording(PROMPT))
    sink.push(2, a_recording(PROMPT))
    assert served.tokens == 6


def test_a_plan_is_heard_of_and_after_a_restart_the_later_ones_are(
    served: Served, sink: GrpcSink
) -> None:
    before, after = a_placement(IN_ORDER), a_placement(SWAPPED)

    def offer(epoch: int) -> None:
        for rank in (0, 1):
            other = GrpcSink(
                served.address,
                a_worker(rank),
                Identity("tiny", "engine-1"),
                a_model(),
                SystemClock(),
            )
            report = partial(other.report, a_status(rank))
            until(partial(works, report))
            other.close()
        stage = Stage(epoch, before, after)
        served.tell(lambda world: world.offers.carry_out("tiny", "engine-1", stage))

    def plan(after_epoch: int) -> Any:
        try:
            return sink.plan(after_epoch)
        except PlacerError:
            return None

    offer(5)
    epoch, found = until(lambda: plan(0))
    assert isinstance(found, Plan)
    assert (epoch, found.placement.digest) == (5, after.digest)
    served.stop()
    served.start()
    offer(6)
    assert until(lambda: plan(5))[0] == 6
