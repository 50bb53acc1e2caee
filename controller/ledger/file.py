"""How the ledger's file is opened: only if it is whole, ours and free; else it is left alone."""

import logging
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from controller.ledger import statements as sql
from controller.ledger.claim import PRIVATE, Claim
from controller.ledger.holder import LedgerError

log = logging.getLogger("placer.controller")

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
# The newest version of a thing, however many there are. Ledgers of before get it, too.
_INDEX = "CREATE INDEX IF NOT EXISTS records_by_id ON records (kind, id)"

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


def connect(path: Path | None, claim: Claim | None = None) -> sqlite3.Connection:
    """Of the claimed file, which becomes a ledger if it is empty. In memory without a path."""
    if path is not None and claim is not None:
        _check(path)
        claim.take()
        _keep_private(path)
    # Transactions are ours (isolation_level), and so is the lock between threads.
    connection = sqlite3.connect(
        ":memory:" if path is None else path,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.text_factory = text
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
        with suppress(sqlite3.OperationalError):  # without room for it, all takes longer
            connection.execute(_INDEX)
            _renumber(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _renumber(connection: sqlite3.Connection) -> None:
    """Records with numbers that were never given are damaged: they come after those that were, and
    leave SQLite numbers to give."""
    beyond = connection.execute(sql.BEYOND).fetchall()
    ((last,),) = connection.execute(sql.LAST).fetchall()
    for number, (damaged,) in enumerate(beyond, last + 1):
        connection.execute("UPDATE records SET number = ? WHERE number = ?", (number, damaged))
        log.warning("placer: record %d of the ledger was never written: now %d", damaged, number)


def text(raw: bytes) -> str | bytes:
    """What is no text keeps no other row from being read."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _head(path: Path) -> bytes:
    """SQLite's header, if it is one; empty if there is nothing."""
    if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
        raise LedgerError(f"{path} is no regular file: choose a file that is yours")
    try:
        with path.open("rb") as file:
            return file.read(100)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise LedgerError(
            f"cannot read {path}: {error.strerror}: choose a file that is yours"
        ) from error


def _check(path: Path) -> None:
    """Refuse what is neither new nor a whole ledger of this format, having only read it."""
    head = _head(path)
    if not head:
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:  # SQLite would delete it
            raise LedgerError(f"{path} is empty but {log} is not: {BROKEN}")
        return
    if len(head) < 100 or not head.startswith(MAGIC):  # SQLite takes a short file for an empty one
        raise LedgerError(f"{path} is not a database: {BROKEN}")
    if not os.access(path, os.W_OK):  # else SQLite opens it, and refuses the first write only
        raise LedgerError(f"{path} may only be read: make it writable, or choose another file")
    unfinished = path.with_name(f"{path.name}-journal").exists()
    if unfinished and head[68:72] in (bytes(4), APPLICATION.to_bytes(4, "big")):
        # Killed in its first steps, which SQLite takes back before anything is read.
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master")
        if not path.stat().st_size:
            return
    with closing(reading(path)) as connection:
        check_format(path, connection)


def reading(path: Path) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode=ro"
    return sqlite3.connect(uri, BUSY_S, uri=True, check_same_thread=False)


def check_format(path: Path, connection: sqlite3.Connection) -> None:
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


def _keep_private(path: Path) -> None:
    """From now on only its owner may read the ledger. SQLite makes the files beside it alike."""
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        try:
            if file.exists() and stat.S_IMODE(file.lstat().st_mode) != PRIVATE:
                file.chmod(PRIVATE)
        except OSError as error:
            raise LedgerError(
                f"{file} can be read by others, and is not this user's to change"
                f" ({error.strerror}): chown it, or choose another ledger"
            ) from error
