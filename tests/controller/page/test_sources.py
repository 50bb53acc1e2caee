"""What a ledger and a running controller tell of a tiny pool: two engines of two ranks."""

import base64
from pathlib import Path
from typing import Any

import pytest

from controller.changes import rank_loads
from controller.fleet.homing import Homing
from controller.ledger.ledger import Ledger, LedgerError
from controller.page.live import Live, joined
from controller.page.of_ledger import of_ledgers
from placer.report.page import Line, Page
from tests.controller.tiny_pool import POOL, SKEWED, TICK_S, World, in_virtual_time


async def a_proposal(path: Path | None = None, **policy: Any) -> World:
    """A plan that waits, of traffic that is skewed."""
    world = World(path=path, confirmations=1, **policy)
    world.count(SKEWED)
    await world.tick()
    return world


@in_virtual_time
async def test_a_plans_rank_loads_are_kept_as_they_were_before_and_after() -> None:
    world = await a_proposal()
    found = rank_loads.read(world.disk, "plan-1")
    assert found is not None
    kept, before, after = found
    # 800 tokens on a rank and 200 on the other; then 500 on both: 1.6, 0.4 and 1 of the mean.
    assert (kept.layers, kept.ranks, kept.peak) == (2, 2, 1.6)
    assert list(before) == [255, 64, 255, 64]
    assert list(after) == [159] * 4


def test_a_ledger_makes_a_page_while_its_controller_has_it(tmp_path: Path) -> None:
    path = tmp_path / "placer.db"
    pages: list[Page] = []

    @in_virtual_time
    async def look() -> None:
        world = await a_proposal(path)
        pages.append(of_ledgers([path]))  # its claim is held
        world.disk.close()

    look()
    (run,) = pages[0].runs
    (row,) = run.pools
    assert (row.name, row.engines, row.gpus, row.width, row.slots) == (POOL, 2, 4, "2", 4)
    assert (row.outcome, row.waits, row.applied, row.balancedness) == (
        "propose",
        "plan-1",
        "",
        0.625,
    )
    (plan,) = run.plans
    assert (plan.command, plan.moved, plan.gain) == ("placer approve plan-1", 4, 0.375)
    assert [(one.moved, one.gain) for one in plan.frontier] == [(0, 0.0), (4, 0.375)]
    assert {(layer, to) for layer, _, _, to, _ in plan.moves} == {
        (layer, f"GPU {gpu}") for layer in (0, 1) for gpu in (0, 1)
    }
    assert plan.heat is not None
    assert base64.b64decode(plan.heat.after) == bytes([159] * 4)
    assert {(one.kind, one.state) for one in run.events} == {
        ("plan", "proposed"),
        ("decision", "propose"),
    }
    assert run.lines[POOL]["balancedness"].values == [0.625]
    assert set(run.missing) == {"fanout", "waiting", "in_time"}


@in_virtual_time
async def test_what_was_done_stands_on_the_time_line() -> None:
    world = await a_proposal(mode="automatic")
    await world.tick(TICK_S)
    page = await Live(world.loop, "").page()
    told = {(one.id, one.state) for one in page.runs[0].events}
    assert {("op-1", "apply"), ("op-1", "succeeded"), ("plan-1", "applied")} <= told
    assert page.runs[0].pools[0].applied == "plan-1"
    assert page.runs[0].plans[0].command == ""


@in_virtual_time
async def test_a_running_controller_tells_what_it_saw_look_by_look() -> None:
    world = World(confirmations=9)
    live = Live(world.loop, " --to here:1")
    for _ in range(3):
        world.count(SKEWED)
        await world.tick(TICK_S)
    (run,) = (await live.page()).runs
    assert run.lines[POOL]["gpus"].values[-1] == 4
    assert run.lines[POOL]["balancedness"].values[-1] == 0.625
    assert set(run.missing) == {"waiting", "running", "in_time", "fanout"} - set(run.lines[POOL])


@in_virtual_time
async def test_what_is_won_by_sending_requests_home_is_told_of_their_pool() -> None:
    world = World()
    world.count(SKEWED)
    assert (await Live(world.loop, "").page()).runs[0].pools[0].homes == ""
    world.loop.homings.of[POOL] = Homing(reason="a third more of its tokens stay on their rank")
    row = (await Live(world.loop, "").page()).runs[0].pools[0]
    assert row.homes == "a third more of its tokens stay on their rank"


@in_virtual_time
async def test_details_are_of_one_pool_and_first_of_one_that_waits() -> None:
    world = await a_proposal()
    live = Live(world.loop, " --to here:1")
    page = await live.page()
    assert page.of_pool == POOL
    assert page.runs[0].plans[0].command == "placer approve plan-1 --to here:1"


@in_virtual_time
async def test_nothing_is_known_of_a_fleet_that_nobody_joined() -> None:
    world = World()
    world.fleet.pools.clear()
    page = await Live(world.loop, "").page()
    assert (page.of_pool, list(page.runs[0].pools)) == ("", [])


def test_what_was_written_down_ends_where_it_was_seen() -> None:
    kept, seen = {"gpus": Line([0, 60, 120], [2, 2, 4])}, {"gpus": Line([90, 120], [3, 4])}
    assert joined(kept, seen) == {"gpus": Line([0, 60, 90, 120], [2, 2, 3, 4])}


def test_two_ledgers_are_compared_and_approve_nothing(tmp_path: Path) -> None:
    paths = [tmp_path / "a.db", tmp_path / "b.db"]

    @in_virtual_time
    async def fill() -> None:
        for path in paths:
            (await a_proposal(path)).disk.close()

    fill()
    page = of_ledgers(paths)
    assert [run.name for run in page.runs] == ["a.db", "b.db"]
    assert [run.plans[0].command for run in page.runs] == ["", ""]


def test_what_is_no_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("hello" * 100)
    for path in (other, tmp_path / "nothing.db"):
        with pytest.raises(LedgerError, match="ledger"):
            of_ledgers([path])
    assert other.read_text() == "hello" * 100
    assert not (tmp_path / "nothing.db").exists()


def test_a_ledger_that_is_only_read_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "placer.db"
    Ledger(path).close()
    looked_at = Ledger(path, reads_only=True)
    with pytest.raises(LedgerError, match="readonly"):
        looked_at.prune("plan", 0, 0.0)
    looked_at.close()
