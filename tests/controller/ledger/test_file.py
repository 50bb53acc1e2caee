import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from controller.ledger.file import APPLICATION, FORMAT
from controller.ledger.ledger import Ledger, LedgerError, Record
from tests.controller.ledger.others import linked, second

NUL = b"\0"
A_PLAN = Record("plan", "p1", 1, 1_000.0, "load moved", {"epoch": 7})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a ledger with one plan."""
    with closing(Ledger(tmp_path / "ledger.db")) as ledger:
        ledger.put(replace(A_PLAN, blob=b"the whole plan"))
    return tmp_path / "ledger.db"


def test_a_ledger_is_found_as_it_was_left(path: Path) -> None:
    with closing(Ledger(path)) as ledger:
        assert ledger.history() == [A_PLAN]
        ledger.put(A_PLAN.next(1_010.0, "approved"))
    with closing(Ledger(path)) as ledger:
        assert [record.version for record in ledger.history()] == [2, 1]
        assert ledger.blob("plan", "p1") == b"the whole plan"


def test_every_put_waits_for_the_disk(path: Path) -> None:
    with closing(Ledger(path)) as ledger:
        full = 2
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (full,)
        assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def run_sqlite(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def replace_bytes(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def sqlite(*statements: str) -> Callable[[Path], None]:
    return lambda path: run_sqlite(path, *statements)


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: replace_bytes(path, change)


BROKEN = "move it and its -wal away, then put a backup in its place or begin anew$"
DAMAGES = {
    "newer": (
        sqlite(f"PRAGMA user_version = {FORMAT + 1}"),
        f"has format {FORMAT + 1}, which is newer than {FORMAT}: use the placer that wrote it",
    ),
    "newer, in an older mode": (
        sqlite("PRAGMA user_version = 99", "PRAGMA journal_mode = DELETE"),
        "has format 99, which is newer than",
    ),
    "another program's": (
        sqlite("PRAGMA application_id = 0", "PRAGMA user_version = 0"),
        "is another program's: choose another file",
    ),
    "text": (changed(lambda _: b"not a database\n" * 99), f"is not a database: {BROKEN}"),
    "a letter": (changed(lambda _: b"x"), f"is not a database: {BROKEN}"),
    "16 bytes": (changed(lambda whole: whole[:16]), f"is not a database: {BROKEN}"),
    "200 bytes": (changed(lambda whole: whole[:200]), BROKEN),
    "600 bytes": (changed(lambda whole: whole[:600]), BROKEN),
    "half": (changed(lambda whole: whole[: len(whole) // 2]), BROKEN),
    "all but the last page": (changed(lambda whole: whole[:-4096]), BROKEN),
    "all but the first page": (changed(lambda whole: NUL * 4096 + whole[4096:]), BROKEN),
    "a header alone": (changed(lambda whole: whole[:4096] + NUL * len(whole[4096:])), BROKEN),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_no_whole_ledger_is_refused_and_left_alone(path: Path, damage: str) -> None:
    do_damage, message = DAMAGES[damage]
    do_damage(path)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(LedgerError, match=message) as caught:
            Ledger(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before


def test_a_newer_ledger_whose_controller_was_killed_is_left_alone(path: Path) -> None:
    script = f"""
import os, signal, sqlite3
connection = sqlite3.connect({str(path)!r}, isolation_level=None)
connection.execute("PRAGMA user_version = {FORMAT + 1}")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    log = path.with_name("ledger.db-wal")
    before = (path.read_bytes(), log.read_bytes())
    assert before[1]  # where alone it says that it is newer
    with pytest.raises(LedgerError, match="newer than"):
        Ledger(path)
    assert (path.read_bytes(), log.read_bytes()) == before


@pytest.mark.parametrize("there", [True, False])
def test_a_log_without_its_ledger_is_left_alone(path: Path, there: bool) -> None:
    log = path.with_name("ledger.db-wal")
    log.write_bytes(b"what was acknowledged last")
    path.write_bytes(b"") if there else path.unlink()
    with pytest.raises(LedgerError, match=f"is empty but .*-wal is not: {BROKEN}"):
        Ledger(path)
    assert log.read_bytes() == b"what was acknowledged last"
    assert path.exists() == there


def test_a_body_that_was_tampered_with_is_told(path: Path) -> None:
    run_sqlite(path, "UPDATE records SET body = '{'")
    with closing(Ledger(path)) as ledger, pytest.raises(LedgerError, match="plan p1 is not JSON"):
        ledger.get("plan", "p1")


def test_an_empty_file_becomes_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "touched.db").touch()
    run_sqlite(tmp_path / "begun.db", "PRAGMA journal_mode = WAL")  # killed before its tables came
    for name in ("touched.db", "begun.db"):
        with closing(Ledger(tmp_path / name)) as ledger:
            ledger.put(A_PLAN)
        with closing(sqlite3.connect(tmp_path / name)) as connection:
            assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION,)


def test_a_file_that_was_killed_in_its_first_step_becomes_a_ledger(tmp_path: Path) -> None:
    """What SQLite was about to write over is in a journal: it was empty."""
    path, other = tmp_path / "ledger.db", tmp_path / "other.db"
    script = f"""
import os, signal, sqlite3
connection = sqlite3.connect({str(path)!r}, isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
for number in range(50):
    connection.execute(f"CREATE TABLE t{{number}} (x)")
    connection.execute(f"INSERT INTO t{{number}} VALUES (zeroblob(9000))")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert path.with_name("ledger.db-journal").stat().st_size
    run_sqlite(other, "PRAGMA journal_mode = WAL")
    path.write_bytes(other.read_bytes())
    with closing(Ledger(path)) as ledger:
        ledger.put(A_PLAN)
        assert ledger.history() == [A_PLAN]
    assert not path.with_name("ledger.db-journal").exists()


def test_a_place_where_nothing_can_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing/ledger.db", tmp_path / "file/ledger.db"):
        with pytest.raises(
            LedgerError, match=r"cannot write .*: make the folder, or choose another"
        ):
            Ledger(path)
    with pytest.raises(LedgerError, match="Is a directory: choose a file that is yours"):
        Ledger(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_ledger_that_may_only_be_read_is_refused(path: Path) -> None:
    path.chmod(0o400)
    with pytest.raises(LedgerError, match="may only be read: make it writable, or choose another"):
        Ledger(path)


def modes(path: Path) -> dict[str, int]:
    """Of the files of an open ledger."""
    return {file.name: file.stat().st_mode & 0o777 for file in path.parent.glob(f"{path.name}*")}


PRIVATE = dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.lock"), 0o600)


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_a_ledger_is_its_owners_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    path, before = tmp_path / "ledger.db", os.umask(umask)
    try:
        with closing(Ledger(path)) as ledger:
            ledger.put(A_PLAN)
            assert modes(path) == PRIVATE
    finally:
        os.umask(before)


def test_a_ledger_that_others_could_read_becomes_private(path: Path) -> None:
    """As an earlier version, or a copy that was put back, leaves it; the controller was killed."""
    script = f"""
import os, signal
from pathlib import Path
from controller.ledger.ledger import Ledger
ledger = Ledger(Path({str(path)!r}))
ledger.prune("plan", 0, 0.0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    for name in PRIVATE:
        path.with_name(name).chmod(0o644)
    with closing(Ledger(linked(path))):
        assert modes(path) == PRIVATE


def test_a_file_that_is_no_ledger_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    run_sqlite(path, "CREATE TABLE theirs (x)")
    path.chmod(0o644)
    with pytest.raises(LedgerError, match="is another program's"):
        Ledger(path)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_link_that_leads_nowhere_yet_becomes_a_ledger_there(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link.db").symlink_to("data/ledger.db")
    with closing(Ledger(tmp_path / "link.db")):
        assert modes(tmp_path / "data/ledger.db") == PRIVATE
        assert second(tmp_path / "data/ledger.db").startswith(f"{tmp_path}/data/ledger.db is in")


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "ledger.db.lock").symlink_to("theirs")
    with pytest.raises(LedgerError, match=r"cannot write .*ledger.db.lock: "):
        Ledger(tmp_path / "ledger.db")
    assert (tmp_path / "theirs").read_text() == "precious"


def test_a_lock_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ledger.db.lock")
    with pytest.raises(LedgerError, match=r"cannot write .*db.lock: it is no regular file: "):
        Ledger(tmp_path / "ledger.db")


COUNTS = """
import sys
from pathlib import Path
from controller.ledger.ledger import Ledger, Record
print(0, flush=True)
ledger = Ledger(Path(sys.argv[1]))
count, mark = ledger.get("plan", "count"), ledger.get("operation", "mark")
while True:
    number = 1 + (count.version if count else 0)
    body = {"number": number, "padding": "x" * (number % 7_000)}
    count, mark = ledger.put_all([
        Record("plan", "count", number, 0.0, "counted", body, blob=bytes([number % 256]) * 9_000),
        Record("operation", "mark", number, 0.0, "marked", body),
    ])
    print(number, flush=True)
"""


def test_what_was_acknowledged_outlives_kill_9_at_any_moment(tmp_path: Path) -> None:
    path, moments, acknowledged = tmp_path / "ledger.db", random.Random(1), 0
    for _ in range(20):
        command = [sys.executable, "-c", COUNTS, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "0\n"  # it is about to open the ledger
            time.sleep(moments.uniform(0.0, 0.1))
            child.send_signal(signal.SIGKILL)
            printed = child.stdout.read()
        if not printed and not path.exists():
            continue  # killed before it came to anything
        whole, _, _ = printed.rpartition("\n")
        acknowledged = max([acknowledged, *map(int, whole.split())])
        with closing(Ledger(path)) as ledger:
            counts, marks = ledger.versions("plan", "count"), ledger.versions("operation", "mark")
            blobs = [ledger.blob("plan", "count", n) for n in range(1, len(counts) + 1)][-20:]
            assert ledger._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        numbers = list(range(1, len(counts) + 1))
        assert [record.value["number"] for record in counts] == numbers
        assert [record.value["number"] for record in marks] == numbers
        assert blobs == [bytes([number % 256]) * 9_000 for number in numbers][-20:]
        assert acknowledged <= len(counts) <= acknowledged + 1
        acknowledged = len(counts)  # what was found once must not go away either
    assert acknowledged > 0
