"""placer scale: the price, the change, and what it took."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.agent.workers import a_worker
from tests.cli.conftest import Placer
from tests.cli.tiny_controller import Running, a_controller


@pytest.fixture
def running() -> Iterator[Running]:
    """One engine of two ranks that can have others."""
    with a_controller() as found:
        found.join()
        found.hear(worker=replace(a_worker(), can_resize=True))
        yield found


def ranks(running: Running) -> int:
    return running.engines.engines["tiny", "engine-1"].placement.gpus


def test_a_dry_run_tells_the_price_and_does_nothing(placer: Placer, running: Running) -> None:
    ended = placer("scale", "tiny", "--ranks", "4", "--dry-run", "--to", running.address)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(
        "2 -> 4 ranks, each engine: of its slots 2 stay, 2 appear in another slot, 4 are copied\n"
    )
    assert "transfer" in ended.out
    assert ranks(running) == 2
    told = placer("scale", "tiny", "--ranks", "4", "--dry-run", "--json", "--to", running.address)
    assert (told.json["status"], told.json["ranks_before"], told.json["copied"]) == (
        "planned",
        2,
        4,
    )
    assert set(told.json["seconds"]) == {"disk", "transfer", "attach", "switch"}


def test_what_was_measured_stands_beside_what_was_predicted(
    placer: Placer, running: Running
) -> None:
    ended = placer("scale", "tiny", "--ranks", "4", "--to", running.address)
    assert ended.code == 0
    assert "predicted" in ended.out
    assert "measured" in ended.out
    assert "engines of tiny have 4 ranks" in ended.out
    assert ranks(running) == 4


def test_where_nobody_can_the_reason_is_told(placer: Placer, running: Running) -> None:
    running.hear()
    ended = placer("scale", "tiny", "--ranks", "4", "--to", running.address)
    assert ended.code == 3
    assert "engine-1 cannot change its width while it serves" in ended.err
    assert ranks(running) == 2


def test_the_same_width_is_bad_usage(placer: Placer, running: Running) -> None:
    ended = placer("scale", "tiny", "--ranks", "2", "--to", running.address, "--json")
    assert (ended.code, ended.json["status"]) == (2, "error")
    assert ended.json["reason"] == "engines of tiny have 2 ranks already"


def test_a_change_at_work_says_which_width_it_is_for(
    placer: Placer, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        with running.clock.busy():  # for longer than anybody waits
            await running.event_loop.create_future()

    monkeypatch.setattr(running.engines, "carry_out", never)
    running.do(running.loop.loads.scale("tiny", 4, "key", "more load", False))
    status = " ".join(placer("status", "--to", running.address).out.split())
    assert "op-1, scale to 4 ranks for " in status
