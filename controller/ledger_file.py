"""How the ledger's file is opened: only if it is whole, ours and free; else it is left alone."""

import fcntl
import os
import platform
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from placer.errors import PlacerError

FORMAT = 1  # PRAGMA user_version
APPLICATION = 0x706C6372  # PRAGMA application_id, "plcr": tells the ledger from other SQLite files
BUSY_S = 2.0  # how long somebody's sqlite3 shell is waited for

# Numbers are never given twice, since they say how far somebody has read. The blob comes last:
# SQLite stops reading a row at the last column that it was asked for.
_SCHEMA = f"""
CREATE TABLE records (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL,
    at_s REAL NOT NULL, reason TEXT NOT NULL, body TEXT NOT NULL,
    pool TEXT NOT NULL, final INTEGER NOT NULL, blob BLOB,
    UNIQUE (kind, id, version));
CREATE INDEX records_by_kind ON records (kind);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT}
"""

MAGIC = b"SQLite format 3\0"
# A -wal that stays behind would be read into whatever comes in the file's place.
BROKEN = "move it and its -wal away, then put a backup in its place or begin anew"
_REMEDIES = {
    sqlite3.SQLITE_FULL: "free some space; writing then goes on by itself",
    sqlite3.SQLITE_CORRUPT: BROKEN,
    sqlite3.SQLITE_NOTADB: BROKEN,
    sqlite3.SQLITE_BUSY: "close the program that looks into it",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "make the file and its folder readable and writable",
}


class LedgerError(PlacerError):
    """The ledger's file is not what it should be, is taken, or cannot be read or written."""


class LedgerFull(LedgerError):  # noqa: N818
    """No room on the disk. Nothing was written; reading goes on, and so will writing."""


@contextmanager
def telling(name: str) -> Iterator[None]:
    """SQLite's errors in our words."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the extended part
        kind = LedgerFull if code == sqlite3.SQLITE_FULL else LedgerError
        remedy = _REMEDIES.get(code, "check its disk and who may write there")
        raise kind(f"{name}: {error}: {remedy}") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite may have rolled it back itself
            with suppress(sqlite3.Error):  # the first error is the one to tell
                connection.execute("ROLLBACK")
        raise


def connect(path: Path | None) -> sqlite3.Connection:
    """Of the locked file, which becomes a ledger if it is empty. In memory without a path."""
    if path is not None:
        _check(path)
    # Transactions are ours (isolation_level), and so is the lock between threads.
    connection = sqlite3.connect(
        ":memory:" if path is None else path,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode not in ("wal", "memory"):
            raise LedgerError(
                f"{path}: its file system knows no write-ahead log (it has {mode!r})"
                ": put the ledger on a local disk"
            )
        connection.execute("PRAGMA synchronous = FULL")  # on the disk before put() returns
        connection.execute("PRAGMA temp_store = MEMORY")  # reading needs no room on the disk
        with transaction(connection):
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(path: Path) -> None:
    """Refuse what is neither new nor a whole ledger of this format, having only read it."""
    if path.is_fifo():  # it would be waited for
        raise LedgerError(f"{path} is no regular file: choose a file that is yours")
    try:
        with path.open("rb") as file:
            head = file.read(100)
    except FileNotFoundError:
        head = b""
    except OSError as error:
        raise LedgerError(
            f"cannot read {path}: {error.strerror}: choose a file that is yours"
        ) from error
    if not head:
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:  # SQLite would delete it
            raise LedgerError(f"{path} is empty but {log} is not: {BROKEN}")
        return
    if len(head) < 100 or not head.startswith(MAGIC):  # SQLite takes a short file for an empty one
        raise LedgerError(f"{path} is not a database: {BROKEN}")
    if not os.access(path, os.W_OK):  # else SQLite opens it, and refuses the first write only
        raise LedgerError(f"{path} may only be read: make it writable, or choose another file")
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
        tables, application, version = (
            connection.execute(query).fetchone()[0]
            for query in (
                "SELECT count(*) FROM sqlite_master",
                "PRAGMA application_id",
                "PRAGMA user_version",
            )
        )
        # Killed at its creation, it is an SQLite file with nothing in it.
        if application != APPLICATION and (tables or application or version):
            raise LedgerError(f"{path} is another program's: choose another file")
        if version > FORMAT:
            raise LedgerError(
                f"{path} has format {version}, which is newer than {FORMAT}"
                ": use the placer that wrote it, or a newer one"
            )
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise LedgerError(f"{path} is damaged ({' '.join(found.split())}): {BROKEN}")


def lock(path: Path) -> int:
    """A file beside it, open and locked until this process ends, however it ends.

    A lock of fcntl's is not shared with forked children: a planner that outlives a killed
    controller does not keep the next one out. The file stays, or two could hold one each.
    """
    beside = path.with_name(f"{path.name}.lock")
    try:
        found = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise LedgerError(
            f"cannot write {beside}: {error.strerror}: make the folder, or choose another"
        ) from error
    try:
        fcntl.lockf(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(found, 300, 0).decode(errors="replace") or "unknown"
        os.close(found)
        if isinstance(error, BlockingIOError | PermissionError):  # EAGAIN or EACCES, says POSIX
            raise LedgerError(
                f"{path} is in use by process {holder}: stop it, or choose another ledger"
            ) from error
        raise LedgerError(
            f"cannot lock {beside}: {error.strerror}: put the ledger on a local disk"
        ) from error
    with suppress(OSError):  # a full disk must not keep a controller from reading
        os.truncate(found, 0)
        os.pwrite(found, f"{os.getpid()} on {platform.node()}".encode(), 0)
    return found
