"""What a worker is offered, and what it says of that."""

from typing import Any, cast

import pytest

from placer.agent.reporter import Reporter
from placer.errors import FileError
from placer.worker import Status
from tests.agent.tiny_reporter import Applying, Clock, Sink, World
from tests.agent.workers import a_plan, a_worker


def test_every_plan_is_offered_once(world: World) -> None:
    for epoch in (3, 3, 5):
        world.sink.found = (epoch, a_plan())
        world.round()
    assert world.applying.offered == [3, 5]
    assert world.sink.asked == [0, 3, 3]
    assert world.said.refused == ""


def test_a_refused_plan_is_reported_with_its_epoch_and_the_reason(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.sink.found = (3, a_plan())
    world.applying.reason = "it is for 4 ranks"
    world.round()
    world.round()
    assert (world.said.refused_epoch, world.said.refused) == (3, "it is for 4 ranks")
    assert "plan 3 is refused, the map stays: it is for 4 ranks" in caplog.text


def test_a_plan_that_cannot_be_read_is_refused_without_being_offered(world: World) -> None:
    world.sink.found = (4, FileError("000004.json is not JSON"))
    world.round()
    world.round()
    assert (world.said.refused_epoch, world.said.refused) == (4, "000004.json is not JSON")
    assert world.applying.offered == []


def test_what_is_reported_as_applied_is_what_the_policy_read_back(world: World) -> None:
    world.sink.found = (3, a_plan())
    world.round()
    assert (world.said.epoch, world.said.digest) == (0, "")  # taken up, and not there yet
    world.applying.epoch, world.applying.digest = 3, "sha256:ab"
    world.round()
    assert (world.said.epoch, world.said.digest) == (3, "sha256:ab")


def test_after_a_change_of_width_a_worker_registers_anew_and_the_newest_plan_is_offered_again(
    world: World,
) -> None:
    world.sink.found = (3, a_plan())
    world.tick()
    world.round()
    world.applying.epoch, world.applying.digest = 3, "sha256:ab"
    world.round()
    wider = a_worker(slots=8, ep_size=4)
    world.applying.epoch, world.applying.digest = 0, ""
    world.applying.worker, world.applying.changes = wider, 2
    world.applying.reason = "it is for 2 ranks"
    world.round()
    world.round()
    assert world.applying.offered == [3, 3]
    assert world.said == Status(wider, refused_epoch=3, refused="it is for 2 ranks", tokens=1)


def test_a_plan_that_came_too_early_for_a_new_width_is_not_refused_for_ever(world: World) -> None:
    world.sink.found, world.applying.reason = (3, a_plan()), "the engine has 2 ranks"
    world.round()
    world.round()
    assert world.said.refused_epoch == 3
    world.applying.reason, world.applying.changes = "", 2
    world.round()
    assert world.applying.offered == [3, 3]
    assert world.said.refused_epoch == 0


def test_a_rearrangement_that_stalls_is_reported_until_it_ends(world: World) -> None:
    world.applying.said = "a rebalance has not finished"
    world.round()
    assert world.said.condition == "a rebalance has not finished"
    world.applying.said = ""
    world.round()
    assert world.said.condition == ""


def test_what_never_goes_away_is_told_where_nothing_worse_is(clock: Clock) -> None:
    sink, applying = Sink(), Applying()
    reporter = Reporter(
        a_worker(), sink, None, cast(Any, applying), clock, "its experts are not seen"
    )
    for applying.said in ("", "a rebalance has not finished", ""):
        reporter._round()
    assert [status.condition for status in sink.statuses] == [
        "its experts are not seen",
        "a rebalance has not finished",
        "its experts are not seen",
    ]
