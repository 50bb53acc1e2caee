"""Plans that are approved, applied and taken back through a controller."""

import getpass
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.engines.in_memory import MemoryEngine
from placer.client import Controller, NobodyError
from placer.files.plans import write_plan
from placer.v1.fleet_pb2 import OperationsRequest
from tests.agent.workers import IN_ORDER, a_plan
from tests.cli.conftest import Placer
from tests.cli.tiny_controller import FullEngine, Running, a_controller

MOVED = [[3, 2, 1, 0], [0, 1, 2, 3]]


@pytest.fixture
def running(placer: Placer) -> Iterator[Running]:
    """With p.json, a plan for two ranks."""
    write_plan(Path("p.json"), a_plan(MOVED))
    with a_controller() as found:
        yield found


def proposed(running: Running, kind: Any = MemoryEngine) -> None:
    """One engine, and plan-1 for it."""
    running.join(kind=kind)

    async def propose() -> None:
        running.loop.arbiter.propose("tiny", a_plan(MOVED), "", "it pays")

    running.do(propose())


def stands(running: Running, pool: str = "tiny") -> list[list[int]]:
    found: list[list[int]] = running.engines.engines[
        pool, "engine-1"
    ].placement.physical_to_logical.tolist()
    return found


def on_gpus(rows: list[list[int]]) -> list[list[set[int]]]:
    return [[set(row[:2]), set(row[2:])] for row in rows]


def test_an_approved_plan_is_applied_in_its_turn(placer: Placer, running: Running) -> None:
    proposed(running)
    ended = placer("approve", "plan-1", "--to", running.address, "--reason", "quiet hour")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == (
        "plan-1 is approved and begins in its turn, when the pool's hours allow\n"
        f"follow it: placer watch tiny --to {running.address}\n"
    )
    assert stands(running) == IN_ORDER
    running.tick()
    assert on_gpus(stands(running)) == on_gpus(MOVED)


def test_who_approves_second_is_told(placer: Placer, running: Running) -> None:
    proposed(running)
    placer("approve", "plan-1", "--to", running.address, "--reason", "quiet hour")
    ended = placer("approve", "plan-1", "--to", running.address)
    assert ended.code == 0
    assert re.fullmatch(r"note: it was approved before, \d s ago: quiet hour\n", ended.err)


def test_what_was_changed_since_it_was_looked_at_is_not_approved(
    placer: Placer, running: Running
) -> None:
    proposed(running)
    placer("approve", "plan-1", "--to", running.address)
    ended = placer("approve", "plan-1", "--version", "1", "--to", running.address)
    assert (ended.code, ended.out) == (2, "")
    assert "is at version 2 and not 1" in ended.err


@pytest.mark.parametrize("more", [(), ("--now",)])
def test_a_plan_that_is_not_there_cannot_be_approved(
    placer: Placer, running: Running, more: tuple[str, ...]
) -> None:
    ended = placer("approve", "plan-9", "--to", running.address, *more)
    assert ended.code == 2
    assert "'plan-9'" in ended.err


def test_only_plans_can_be_approved(placer: Placer, running: Running) -> None:
    proposed(running)
    placer("approve", "plan-1", "--now", "--to", running.address)
    ended = placer("approve", "op-1", "--to", running.address)
    assert ended.code == 2
    assert "op-1 is no plan" in ended.err


def test_approve_as_json(placer: Placer, running: Running) -> None:
    proposed(running)
    found = placer("approve", "plan-1", "--to", running.address, "--json").json
    assert (found["status"], found["id"], found["version"]) == ("approved", "plan-1", 2)
    assert found["state"] == "approved"
    assert "file" not in found


def test_now_applies_at_once_and_waits_for_the_end(placer: Placer, running: Running) -> None:
    proposed(running)
    ended = placer("approve", "plan-1", "--now", "--to", running.address)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("op-1 succeeded in 0 s: plan-1 is applied on tiny; 4.0 kB copied")
    assert on_gpus(stands(running)) == on_gpus(MOVED)


@pytest.mark.parametrize(("more", "who"), [((), getpass.getuser()), (("--approver", "ada"), "ada")])
@pytest.mark.parametrize("verb", ["approve", "reject"])
def test_who_is_at_the_terminal_decides_unless_somebody_is_named(
    placer: Placer, running: Running, verb: str, more: tuple[str, ...], who: str
) -> None:
    proposed(running)
    found = placer(verb, "plan-1", "--to", running.address, "--json", *more).json
    assert (found["status"], found["approver"]) == (found["state"], who)


def test_a_rejected_plan_is_not_applied(placer: Placer, running: Running) -> None:
    proposed(running)
    ended = placer("reject", "plan-1", "--to", running.address, "--reason", "not today")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "plan-1 is rejected, and tiny stays as it is\n"
    running.tick()
    assert stands(running) == IN_ORDER
    assert placer("approve", "plan-1", "--to", running.address).code == 2


def test_what_is_taken_back_ends_with_3_and_the_reason(placer: Placer, running: Running) -> None:
    proposed(running, FullEngine)
    ended = placer("approve", "plan-1", "--now", "--to", running.address)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith("rolled back: engine-1: copying, round 1")
    assert "no room for copies" in ended.err
    assert stands(running) == IN_ORDER


def test_json_of_what_is_taken_back(placer: Placer, running: Running) -> None:
    proposed(running, FullEngine)
    ended = placer("approve", "plan-1", "--now", "--to", running.address, "--json")
    assert ended.code == 3
    assert ended.json["status"] == ended.json["phase"] == "rolled back"
    assert "no room for copies" in ended.json["reason"]


def test_rollback_brings_back_what_stood_before(placer: Placer, running: Running) -> None:
    proposed(running)
    placer("approve", "plan-1", "--now", "--to", running.address)
    ended = placer("rollback", "tiny", "--to", running.address, "--reason", "latency rose")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("op-2 succeeded in 0 s: tiny is where it was before plan-1")
    assert on_gpus(stands(running)) == on_gpus(IN_ORDER)


def test_a_pool_that_was_never_changed_has_nothing_to_go_back_to(
    placer: Placer, running: Running
) -> None:
    running.join()
    ended = placer("rollback", "tiny", "--to", running.address)
    assert (ended.code, ended.out) == (2, "")
    assert "tiny was never changed" in ended.err


def test_apply_to_an_address_proposes_and_applies_the_file(
    placer: Placer, running: Running
) -> None:
    running.join()
    ended = placer("apply", "p.json", "--to", running.address)
    assert ended.code == 0
    assert ended.err == "note: p.json is plan-1 of tiny\n"
    assert ended.out.startswith("op-1 succeeded in 0 s: plan-1 is applied on tiny")
    assert on_gpus(stands(running)) == on_gpus(MOVED)


def test_of_two_pools_one_is_chosen(placer: Placer, running: Running) -> None:
    running.join("tiny")
    running.join("other")
    ended = placer("apply", "p.json", "--to", running.address)
    assert (ended.code, ended.out) == (2, "")
    assert "has pools other, tiny: choose one with --pool" in ended.err
    assert placer("apply", "p.json", "--to", running.address, "--pool", "other").code == 0
    assert on_gpus(stands(running, "other")) == on_gpus(MOVED)
    assert stands(running) == IN_ORDER


def test_without_pools_it_says_how_to_attach_engines(placer: Placer, running: Running) -> None:
    ended = placer("apply", "p.json", "--to", running.address)
    assert ended.code == 2
    assert f"has no pools yet: start the engines with PLACER_AGENT={running.address}" in ended.err


def test_what_the_workers_would_refuse_is_not_proposed(placer: Placer, running: Running) -> None:
    running.join()
    write_plan(Path("wide.json"), a_plan([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 1]]))
    ended = placer("apply", "wide.json", "--to", running.address)
    assert (ended.code, ended.out) == (2, "")
    assert "6 slots" in ended.err


def test_a_broken_plan_is_told_by_its_name(placer: Placer, running: Running) -> None:
    Path("bad.json").write_text("{}")
    ended = placer("apply", "bad.json", "--to", running.address)
    assert ended.code == 2
    assert "bad.json" in ended.err


def test_an_engine_that_is_gone_is_the_controllers_answer(placer: Placer, running: Running) -> None:
    running.join().is_gone = True
    ended = placer("apply", "p.json", "--to", running.address)
    assert ended.code == 2
    assert "engine-1 of tiny is gone" in ended.err
    assert "no controller" not in ended.err


def test_what_takes_longer_than_the_wait_goes_on(
    placer: Placer, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.join()

    async def never(*_: object) -> None:
        with running.clock.busy():  # for longer than anybody waits
            await running.event_loop.create_future()

    monkeypatch.setattr(running.engines, "carry_out", never)
    ended = placer("apply", "p.json", "--to", running.address, "--wait", "0.3")
    assert (ended.code, ended.out) == (3, "")
    assert "op-1 goes on after 0.3 s, now engine-1: staging" in ended.err
    status = " ".join(placer("status", "--to", running.address).out.split())
    assert re.search("op-1, apply of plan-1 for [0-9]+ s: engine-1: staging", status)


def test_a_pool_is_no_directorys(placer: Placer, running: Running) -> None:
    ended = placer("apply", "p.json", "--to", "agents", "--pool", "tiny")
    assert ended.code == 2
    assert "agents is a directory: leave it out" in ended.err


def test_a_controller_that_starts_again_meanwhile_is_waited_for(
    placer: Placer, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.join()
    ask, asked = Controller.ask, []

    def restarting(self: Controller, method: Any, request: Any, *more: Any) -> Any:
        if isinstance(request, OperationsRequest):
            asked.append(request)
            if len(asked) < 3:
                raise NobodyError("no controller answers")
        return ask(self, method, request, *more)

    monkeypatch.setattr(Controller, "ask", restarting)
    ended = placer("apply", "p.json", "--to", running.address)
    assert ended.code == 0
    assert len(asked) == 3


def test_a_controller_that_stays_away_is_not(
    placer: Placer, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.join()
    ask = Controller.ask

    def dead(self: Controller, method: Any, request: Any, *more: Any) -> Any:
        if isinstance(request, OperationsRequest):
            raise NobodyError("no controller answers")
        return ask(self, method, request, *more)

    monkeypatch.setattr(Controller, "ask", dead)
    monkeypatch.setattr("placer.cli.operations.AWAY_S", 0.1)
    ended = placer("apply", "p.json", "--to", running.address)
    assert (ended.code, ended.out) == (2, "")
    assert "op-1 goes on when it is back: placer explain op-1" in ended.err
