"""`placer apply` with two workers that a thread plays: it writes what theirs would."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from placer.agent import folder
from placer.files.plans import read_plan, write_plan
from placer.worker import GONE_S, Status
from tests.agent.workers import a_plan, a_status, a_worker
from tests.cli.conftest import Placer

AGENTS = Path("agents")
SOON = ("--wait", "0.1")  # where nothing is to come
LONG = ("--wait", "30")  # where the answer does come, and ends it
MOVED = [[3, 2, 1, 0], [0, 1, 2, 3]]

Answer = Callable[[Status, int, str], Status]  # to an epoch and the digest of its plan


def reported(*statuses: Status) -> None:
    for status in statuses:
        (AGENTS / status.worker.name).mkdir(parents=True, exist_ok=True)
        folder.write_status(AGENTS, status)


def silent(status: Status) -> None:
    """A worker that is gone: its status is as old as makes it so."""
    reported(status)
    old_s = time.time() - GONE_S - 1
    os.utime(AGENTS / status.worker.name / "status.json", (old_s, old_s))


def takes_up(status: Status, epoch: int, digest: str) -> Status:
    return replace(status, epoch=epoch, digest=digest)


def refuses(status: Status, epoch: int, _: str) -> Status:
    if status.worker.ep_rank == 0:
        return status
    return replace(status, refused_epoch=epoch, refused="its memory is full")


def first_alone_takes_up(status: Status, epoch: int, digest: str) -> Status:
    return status if status.worker.ep_rank else takes_up(status, epoch, digest)


@contextmanager
def two_workers(answer: Answer) -> Iterator[threading.Event]:
    """Workers that report, and answer a plan that is handed over while this runs. Gives what is
    set when they have."""
    statuses = [a_status(0), a_status(1)]
    reported(*statuses)
    before, ends, answered = folder.newest_plan(AGENTS), threading.Event(), threading.Event()

    def serve() -> None:
        while not ends.wait(0.01):
            newest = folder.newest_plan(AGENTS)
            if newest is not None and newest != before:
                epoch, path = newest
                digest = read_plan(path).placement.digest
                reported(*(answer(status, epoch, digest) for status in statuses))
                answered.set()
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield answered
    finally:
        ends.set()
        thread.join()


class ClockThatWaitsFor:
    """In place of the module ``time``: a sleep is over when ``answered`` is set, and takes long."""

    def __init__(self, answered: threading.Event) -> None:
        self.answered, self.now_s = answered, 0.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return time.time()

    def sleep(self, _: float) -> None:
        assert self.answered.wait(60)
        self.now_s += 1000


@pytest.fixture
def applying(placer: Placer) -> Placer:
    """``placer`` where p.json is a plan for two ranks."""
    write_plan(Path("p.json"), a_plan(MOVED))
    return placer


def test_once_every_rank_has_the_plan_it_is_applied(applying: Placer) -> None:
    with two_workers(takes_up):
        ended = applying("apply", "p.json", "--to", "agents", *LONG)
    assert ended.code == 0
    digest = a_plan(MOVED).placement.digest
    assert ended.out == f"plan 1 is applied on 2 ranks\n{digest}\n"
    assert read_plan(AGENTS / "plans" / "000001.json").placement.digest == digest


def test_every_plan_gets_the_next_epoch(applying: Placer) -> None:
    for epoch in (1, 2):
        with two_workers(takes_up):
            ended = applying("apply", "p.json", "--to", "agents", *LONG)
        assert ended.out.startswith(f"plan {epoch} is applied")
    names = sorted(path.name for path in (AGENTS / "plans").iterdir())
    assert names == ["000001.json", "000002.json"]


def test_a_refusal_while_it_waits_ends_it_with_the_rank_and_its_reason(applying: Placer) -> None:
    with two_workers(refuses):
        ended = applying("apply", "p.json", "--to", "agents", *LONG)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: worker-1 refuses plan 1: its memory is full\n"


def test_a_refusal_of_an_earlier_plan_is_none_of_this_one(applying: Placer) -> None:
    with two_workers(refuses):
        assert applying("apply", "p.json", "--to", "agents", *LONG).code == 2

    def again(status: Status, epoch: int, digest: str) -> Status:
        return takes_up(replace(status, refused_epoch=1, refused="once"), epoch, digest)

    with two_workers(again):
        assert applying("apply", "p.json", "--to", "agents", *LONG).code == 0


def test_ranks_that_have_not_taken_it_up_in_time_are_named(applying: Placer) -> None:
    reported(a_status(0), a_status(1))
    ended = applying("apply", "p.json", "--to", "agents", *SOON)
    assert (ended.code, ended.out) == (3, "")
    assert "plan 1 is handed over" in ended.err
    assert "worker-0, worker-1" in ended.err
    assert "in 0.1 s" in ended.err
    assert (AGENTS / "plans" / "000001.json").exists()  # they may yet


def test_only_the_ranks_that_are_late_are_named(
    applying: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_workers(first_alone_takes_up) as answered:
        monkeypatch.setattr("placer.cli.apply.time", ClockThatWaitsFor(answered))
        ended = applying("apply", "p.json", "--to", "agents", *LONG)
    assert ended.code == 3
    assert "not applied in 30 s by worker-1" in ended.err
    assert "worker-0" not in ended.err


def test_without_time_to_wait_it_is_handed_over_all_the_same(applying: Placer) -> None:
    reported(a_status(0), a_status(1))
    assert applying("apply", "p.json", "--to", "agents", "--wait", "0").code == 3
    assert (AGENTS / "plans" / "000001.json").exists()


def nothing_written() -> bool:
    return not (AGENTS / "plans").exists()


@pytest.mark.parametrize("exists", [True, False])
def test_where_no_agent_reports_nothing_is_written(applying: Placer, exists: bool) -> None:
    if exists:
        AGENTS.mkdir()
    ended = applying("apply", "p.json", "--to", "agents")
    assert (ended.code, ended.out) == (2, "")
    assert "no agent reports in agents" in ended.err
    assert "PLACER_AGENT=agents" in ended.err
    assert nothing_written()


def test_where_all_agents_are_gone_nothing_is_written(applying: Placer) -> None:
    silent(a_status(0))
    ended = applying("apply", "p.json", "--to", "agents")
    assert ended.code == 2
    assert "no agent reports in agents" in ended.err
    assert nothing_written()


def test_a_worker_that_is_gone_neither_refuses_nor_is_waited_for(applying: Placer) -> None:
    silent(Status(a_worker(2, layers=7)))  # which would refuse
    with two_workers(takes_up):
        ended = applying("apply", "p.json", "--to", "agents", *LONG)
    assert ended.code == 0
    assert "on 2 ranks" in ended.out


def test_what_one_rank_would_refuse_is_written_for_none(applying: Placer) -> None:
    reported(a_status(0), Status(a_worker(1, slots=6)))
    ended = applying("apply", "p.json", "--to", "agents", *LONG)
    assert (ended.code, ended.out) == (2, "")
    for part in ("worker-1 would refuse p.json", "4 slots", "engine 6", "--redundant 2"):
        assert part in ended.err
    assert nothing_written()


@pytest.mark.parametrize("content", ["", "{}", "not JSON"])
def test_what_is_no_plan_is_written_for_none(applying: Placer, content: str) -> None:
    reported(a_status(0), a_status(1))
    Path("bad.json").write_text(content)
    ended = applying("apply", "bad.json", "--to", "agents", *LONG)
    assert (ended.code, ended.out) == (2, "")
    assert "bad.json" in ended.err
    assert nothing_written()


@pytest.mark.parametrize("wait", ["-1", "soon"])
def test_a_wait_that_is_no_time_is_refused(applying: Placer, wait: str) -> None:
    reported(a_status(0), a_status(1))
    ended = applying("apply", "p.json", "--to", "agents", "--wait", wait)
    assert ended.code == 2
    assert "--wait" in ended.err
    assert nothing_written()


def test_an_address_is_told_from_a_directory(applying: Placer) -> None:
    ended = applying("apply", "p.json", "--to", "127.0.0.1:1")
    assert ended.code == 2
    assert "no controller answers at 127.0.0.1:1" in ended.err


def test_a_directory_may_be_called_as_an_address_is(applying: Placer) -> None:
    Path("agents:1").mkdir()
    ended = applying("apply", "p.json", "--to", "agents:1")
    assert ended.code == 2
    assert "no agent reports in agents:1" in ended.err
