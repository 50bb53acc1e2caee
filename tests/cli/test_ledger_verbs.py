"""`placer watch`, `history` and `explain`."""

import getpass
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from placer.files.plans import write_plan
from tests.agent.workers import a_plan
from tests.cli.conftest import Placer
from tests.cli.tiny_controller import Running, a_controller

MOVED = [[3, 2, 1, 0], [0, 1, 2, 3]]


@pytest.fixture
def running(placer: Placer) -> Iterator[Running]:
    """Where plan-1 was applied, by op-1."""
    write_plan(Path("p.json"), a_plan(MOVED))
    with a_controller() as found:
        found.join()
        assert placer("apply", "p.json", "--to", found.address).code == 0
        yield found


@contextmanager
def once_watched(running: Running, then: Callable[[], None]) -> Iterator[None]:
    """Does something in a thread as soon as somebody watches."""

    def wait() -> None:
        while not running.loop.ledger._watchers:
            time.sleep(0.01)
        then()

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def test_the_history_is_told_newest_first(placer: Placer, running: Running) -> None:
    ended = placer("history", "--to", running.address)
    assert ended.code == 0
    head, first, *rest = (line.split() for line in ended.out.splitlines())
    assert head == ["UTC", "id", "state", "reason"]
    assert first[2:] == ["plan-1", "applied", "op-1", "succeeded"]
    assert any(line[2:5] == ["op-1", "apply", "succeeded"] for line in rest)


def test_the_history_of_several_pools_names_them(placer: Placer, running: Running) -> None:
    running.join("other")
    placer("apply", "p.json", "--to", running.address, "--pool", "other")
    out = placer("history", "--to", running.address).out
    assert out.splitlines()[0].split() == ["UTC", "pool", "id", "state", "reason"]
    out = placer("history", "tiny", "--to", running.address).out
    assert "plan-2" not in out


def test_the_history_is_as_long_as_asked(placer: Placer, running: Running) -> None:
    out = placer("history", "--limit", "1", "--to", running.address).out
    assert len(out.splitlines()) == 2
    assert placer("history", "--limit", "0", "--to", running.address).code == 2


def test_the_history_as_json_has_bodies(placer: Placer, running: Running) -> None:
    found = placer("history", "--to", running.address, "--json").json
    assert found["status"] == "done"
    plan, operation = found["records"]
    assert (plan["kind"], plan["id"], plan["body"]["state"]) == ("plan", "plan-1", "applied")
    assert (operation["id"], operation["body"]["phase"]) == ("op-1", "succeeded")


def test_nothing_is_history_at_first(placer: Placer) -> None:
    with a_controller() as running:
        ended = placer("history", "--to", running.address)
    assert (ended.code, ended.out) == (0, "")
    assert ended.err == "note: nothing is written down yet\n"


def test_explain_tells_a_plans_life(placer: Placer, running: Running) -> None:
    ended = placer("explain", "plan-1", "--to", running.address)
    assert ended.code == 0
    told = [line[21:] for line in ended.out.splitlines() if line.startswith("20")]
    assert told[0] == "plan-1 proposed: p.json"
    assert f"plan-1 approved by {getpass.getuser()}: applied from p.json" in told
    assert "plan-1 applied: op-1 succeeded" in told


def test_explain_as_json(placer: Placer, running: Running) -> None:
    found = placer("explain", "op-1", "--to", running.address, "--json").json
    assert found["status"] == "done"
    assert any("op-1" in line for line in found["lines"])
    assert found["records"][0]["body"]["kind"] == "apply"


def test_what_is_not_known_cannot_be_explained(placer: Placer, running: Running) -> None:
    ended = placer("explain", "plan-9", "--to", running.address)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: nothing is known of 'plan-9'")


def test_watching_shows_each_change_until_the_stream_ends(placer: Placer) -> None:
    with a_controller() as running:
        running.join()

        async def propose_and_end() -> None:
            running.loop.arbiter.propose("tiny", a_plan(MOVED), "", "it\npays")
            for queue in running.loop.ledger._watchers:
                queue.put_nowait(None)  # as if it were too slow

        with once_watched(running, lambda: running.do(propose_and_end())):
            ended = placer("watch", "tiny", "--to", running.address)
    assert ended.code == 2
    (line,) = ended.out.splitlines()
    assert line.split()[2:] == ["plan", "plan-1", "proposed:", "it", "pays"]
    assert "error: 1000 changes were not read in time" in ended.err


def test_an_interrupt_ends_the_watch_well(placer: Placer) -> None:
    with (
        a_controller() as running,
        once_watched(running, lambda: os.kill(os.getpid(), signal.SIGINT)),
    ):
        ended = placer("watch", "--to", running.address)
    assert (ended.code, ended.out) == (0, "")


def test_a_pool_that_is_not_there_is_not_watched(placer: Placer, running: Running) -> None:
    ended = placer("watch", "nope", "--to", running.address)
    assert (ended.code, ended.err) == (2, "error: no pool 'nope': there is tiny\n")
