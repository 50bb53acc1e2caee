import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from controller.ledger.ledger import Ledger, LedgerError, Record
from tests.controller.ledger.others import linked, second

A_PLAN = Record("plan", "p1", 1, 1_000.0, "load moved", {"epoch": 7})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a ledger with one plan."""
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        ledger.put(replace(A_PLAN, blob=b"the whole plan"))
    return tmp_path / "ledger.db"


def chained(path: Path) -> Path:
    path.with_name("chain.db").symlink_to(linked(path).name)
    return path.with_name("chain.db")


def in_a_linked_folder(path: Path) -> Path:
    path.with_name("link").symlink_to(path.parent)
    return path.with_name("link") / path.name


def by_a_detour(path: Path) -> Path:
    path.with_name("folder").mkdir()
    return path.parent / "folder" / ".." / path.name


def relative(path: Path) -> Path:
    return Path(os.path.relpath(path))


@pytest.mark.parametrize(
    "other", [Path, linked, chained, in_a_linked_folder, by_a_detour, relative]
)
def test_a_second_controller_is_refused_until_the_first_is_gone(
    path: Path, other: Callable[[Path], Path]
) -> None:
    name = other(path)
    told = f"{path} is in use by process {os.getpid()} on "
    with closing(Ledger(path)) as ledger:
        answer = second(name)
        assert answer.startswith(told)
        assert answer.endswith(": stop it, or choose another ledger\n")
        ledger.beat()
        for _ in range(2):  # nor in this process, which leaves the first its lock
            with pytest.raises(LedgerError) as caught:
                Ledger(name)
            assert str(caught.value).startswith(told)
        ledger.beat()
        assert second(path).startswith(told)
        ledger.put(A_PLAN.next(1_010.0, "approved"))
    assert second(name) == ""


def hard_linked(path: Path) -> Path:
    path.with_name("other.db").hardlink_to(path)
    return path.with_name("other.db")


def renamed(path: Path) -> Path:
    return path.rename(path.with_name("other.db"))


@pytest.mark.parametrize("other", [hard_linked, renamed])
def test_a_ledger_in_use_is_refused_by_its_other_name_too(
    path: Path, other: Callable[[Path], Path]
) -> None:
    with closing(Ledger(path)) as ledger:
        name = other(path)
        told = f"{name} is in use under another name: stop it, or choose another ledger"
        assert second(name) == f"{told}\n"
        ledger.beat()
        with pytest.raises(LedgerError, match=told):
            Ledger(name)
        assert second(name) == f"{told}\n"
        ledger.put(A_PLAN.next(1_010.0, "approved"))
        assert not name.with_name("other.db-wal").exists()


def test_another_file_in_the_place_of_a_ledger_in_use_is_refused(path: Path) -> None:
    with closing(Ledger(path)):
        path.rename(path.with_name("moved.db"))
        assert second(path).startswith(f"{path} is in use by process {os.getpid()} on ")
        assert not path.exists()


def test_a_ledger_with_two_names_is_refused_by_both(path: Path) -> None:
    """Whoever was killed may have left a log beside the one, which the other would not be read
    with."""
    other = hard_linked(path)
    for name in (path, other):
        with pytest.raises(LedgerError, match=rf"{name} has 2 names \(hard links\), and by each"):
            Ledger(name)
    other.unlink()
    assert second(path) == ""


HOLDS = """
import os, sys, time
from pathlib import Path
from controller.ledger.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
child = os.fork()
print(child or "", flush=True)
time.sleep(60)
"""


def test_a_forked_planner_that_outlives_its_controller_keeps_no_other_out(path: Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        lines = parent.stdout.readline() + parent.stdout.readline()
        child = int(lines)
        try:
            assert f"is in use by process {parent.pid} on" in second(path)
            parent.kill()
            parent.wait()
            os.kill(child, 0)  # it is there
            assert second(path) == ""
        finally:
            os.kill(child, signal.SIGKILL)
