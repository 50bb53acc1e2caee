"""Two controllers on one ledger: the second comes when the first has ended or is silent, and then
the first writes nothing any more."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from controller.ledger.holder import SILENT_S
from controller.ledger.ledger import Fenced, InUse, Ledger, Record

A_PLAN = Record("plan", "p1", 1, 1_000.0, "load moved", {"epoch": 7})
WRITES = """
import sys
from pathlib import Path
from controller.ledger.ledger import Ledger, LedgerError, Record
ledger = Ledger(Path(sys.argv[1]))
for number, _ in enumerate(sys.stdin, start=1):
    try:
        ledger.put(Record("plan", "p1", number, 1000.0, "", {}))
        print("written", flush=True)
    except LedgerError as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


class Other:
    """A controller's process, that writes when it is told to."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", WRITES, str(path)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    def write(self) -> str:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return str(self.process.stdout.readline()).strip()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@pytest.fixture
def other(path: Path) -> Iterator[Other]:
    found = Other(path)
    try:
        assert found.write() == "written"
        yield found
    finally:
        found.process.kill()
        found.process.communicate()


def change(path: Path, **columns: object) -> None:
    """Of what the file says of its holder."""
    told = ", ".join(f"{name} = ?" for name in columns)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"UPDATE ledger SET {told}", tuple(columns.values()))


def fall_silent(path: Path, seconds: float) -> None:
    """The holder was heard last so many seconds ago."""
    ago = f"(julianday('now') - 2440587.5) * 86400.0 - {seconds}"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"UPDATE ledger SET beat_s = {ago}")


def test_a_ledger_keeps_its_id_for_ever(path: Path, tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        with closing(Ledger(path)) as ledger:
            ids.append(ledger.id)
    with closing(Ledger(tmp_path / "other.db")) as ledger, closing(Ledger(None)) as in_memory:
        others = [ledger.id, in_memory.id]
    assert ids[0] == ids[1]
    assert len({ids[0], *others}) == 3
    assert len(ids[0]) == 32


def test_a_paused_holder_is_overtaken_once_it_is_silent_and_writes_nothing_when_it_wakes(
    path: Path, other: Other
) -> None:
    other.send(signal.SIGSTOP)
    fall_silent(path, SILENT_S / 2)
    with pytest.raises(InUse, match=f"in use by process {other.pid} on "):
        Ledger(path)
    fall_silent(path, SILENT_S + 1)
    with closing(Ledger(path)) as second:
        second.put(A_PLAN.next(1_010.0, "approved"))
        other.send(signal.SIGCONT)
        told = other.write()
        assert told.startswith("Fenced ")
        assert f"was taken over by process {os.getpid()} on " in told
        assert other.write().startswith("Fenced ")
        assert [record.version for record in second.history()] == [2, 1]
        second.beat()


def test_one_that_says_that_it_is_alive_is_not_overtaken(path: Path) -> None:
    with closing(Ledger(path)) as ledger:
        fall_silent(path, 2 * SILENT_S)
        ledger.beat()
        with pytest.raises(InUse):
            Ledger(path)


def test_one_that_was_killed_is_followed_at_once(path: Path, other: Other) -> None:
    other.process.kill()
    other.process.wait()
    with closing(Ledger(path)) as ledger:
        assert ledger.version("plan", "p1") == 1


def test_one_that_was_killed_on_another_machine_is_waited_for(path: Path, other: Other) -> None:
    other.process.kill()
    other.process.wait()
    change(path, machine="another")
    fall_silent(path, 0)
    with pytest.raises(InUse):
        Ledger(path)
    fall_silent(path, SILENT_S + 1)
    Ledger(path).close()


def test_who_overtook_has_the_locks_once_the_paused_one_is_gone(path: Path, other: Other) -> None:
    other.send(signal.SIGSTOP)
    fall_silent(path, SILENT_S + 1)
    with closing(Ledger(path)) as second:
        with pytest.raises(InUse, match=f"by process {os.getpid()} on "):
            Ledger(path)
        other.process.kill()
        other.process.wait()
        with pytest.raises(InUse, match=f"by process {os.getpid()} on "):
            Ledger(path)  # which could have had the locks
        second.beat()
        fall_silent(path, 0)
        with pytest.raises(InUse, match=f"by process {os.getpid()} on "):
            Ledger(path)


def test_a_holder_of_before_there_were_holders_is_never_overtaken(path: Path, other: Other) -> None:
    """It has the locks, and says nowhere that it is alive."""
    path.with_name("ledger.db.lock").write_text("12 on an earlier version's machine")
    fall_silent(path, 2 * SILENT_S)
    with pytest.raises(InUse, match="by process 12 on an earlier version's machine"):
        Ledger(path)


def test_who_was_overtaken_and_ends_does_not_end_the_other(path: Path) -> None:
    with closing(sqlite3.connect(path)), closing(Ledger(path)) as first:
        change(path, holder=7, name="8 on another")
        with pytest.raises(Fenced, match="by process 8 on another"):
            first.put(A_PLAN)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT holder, name FROM ledger").fetchone() == (
            7,
            "8 on another",
        )


def test_a_ledger_of_before_gets_its_id(path: Path) -> None:
    with closing(Ledger(path)) as ledger:
        ledger.put(A_PLAN)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE ledger")
    with closing(Ledger(path)) as ledger:
        assert len(ledger.id) == 32
        assert ledger.history() == [A_PLAN]
