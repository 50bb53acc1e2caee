"""Who may write to a ledger: one holder, by its number, which every write looks at.

A controller becomes the holder when it starts, by counting the number up, and says again and
again that it is alive. Another one comes in its place once it has ended, or was silent for
SILENT_S. So one that was paused, and wakes after that, finds another number there, and writes
nothing any more.
"""

import os
import platform
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from placer.errors import PlacerError

SILENT_S = 15.0  # without a word, after which a holder that is there no longer counts
BEAT_S = 3.0

# SQLite's clock is read where the row is: the file's holders may be on different machines.
_NOW = "((julianday('now') - 2440587.5) * 86400.0)"
SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (
    id TEXT NOT NULL, holder INTEGER NOT NULL DEFAULT 0,
    name TEXT NOT NULL DEFAULT '', machine TEXT NOT NULL DEFAULT '',
    locked INTEGER NOT NULL DEFAULT 0, beat_s REAL NOT NULL DEFAULT 0,
    forgotten INTEGER NOT NULL DEFAULT 0);
INSERT INTO ledger (id)
SELECT lower(hex(randomblob(16))) WHERE NOT EXISTS (SELECT 1 FROM ledger)
"""
FORGOTTEN = "SELECT forgotten FROM ledger"
_SEEN = f"SELECT name, machine, locked, abs({_NOW} - beat_s) FROM ledger"


class LedgerError(PlacerError):
    """The ledger's file is not what it should be, is taken, or cannot be read or written."""


class InUse(LedgerError):  # noqa: N818
    """Another controller has it."""


class Fenced(LedgerError):  # noqa: N818
    """Another controller has taken it over. Nothing was written, and nothing will be."""


@dataclass(frozen=True, slots=True)
class Holder:
    """As the file has it. name: its process; machine: since its last boot; locked: whether it has
    the file's locks; silent_s: since it said that it is alive, for ages if it has ended"""

    name: str
    machine: str
    locked: bool
    silent_s: float

    @property
    def is_silent(self) -> bool:
        return self.silent_s > SILENT_S

    @property
    def is_gone(self) -> bool:
        """Seen by who has the file's locks: what held them here has ended."""
        return self.is_silent or (self.locked and self.machine == this_machine())


def this_process() -> str:
    return f"{os.getpid()} on {platform.node()}"


def this_machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def seen(connection: sqlite3.Connection) -> Holder | None:
    """None of a ledger that was without holders."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger'").fetchone():
        return None
    name, machine, locked, silent_s = connection.execute(_SEEN).fetchone()
    return Holder(name, machine, bool(locked), silent_s)


@dataclass(frozen=True, slots=True)
class Holding:
    """This process's. id: of the ledger; number: of this holder, each once"""

    id: str
    number: int


# All of these are parts of a transaction, which the caller begins.


def hold(connection: sqlite3.Connection, name: str, locked: bool) -> Holding:
    """Become the holder. Raises InUse if another one is alive. name: of the ledger"""
    before = seen(connection)
    if before is not None and not (before.is_gone if locked else before.is_silent):
        raise InUse(in_use(name, f"by process {before.name}"))
    for statement in SCHEMA.split(";"):
        connection.execute(statement)
    told = (this_process(), this_machine(), locked)
    new = f"holder = holder + 1, name = ?, machine = ?, locked = ?, beat_s = {_NOW}"
    connection.execute(f"UPDATE ledger SET {new}", told)
    return Holding(*connection.execute("SELECT id, holder FROM ledger").fetchone())


def check(connection: sqlite3.Connection, name: str, holding: Holding) -> None:
    """Raises Fenced if another one has become the holder since."""
    number, other = connection.execute("SELECT holder, name FROM ledger").fetchone()
    if number != holding.number:
        raise Fenced(
            f"{name} was taken over by process {other}, as this one was silent for {SILENT_S:g} s "
            "or more: this one ends"
        )


def beat(connection: sqlite3.Connection, locked: bool) -> None:
    """It is alive."""
    connection.execute(f"UPDATE ledger SET beat_s = {_NOW}, locked = ?", (locked,))


def end(connection: sqlite3.Connection) -> None:
    """The next one need not wait."""
    connection.execute("UPDATE ledger SET beat_s = 0")


def forget(connection: sqlite3.Connection, number: int) -> None:
    """The record of this number is gone: who saw less than that cannot go on from there."""
    connection.execute("UPDATE ledger SET forgotten = max(forgotten, ?)", (number,))


def in_use(name: object, where: str) -> str:
    return f"{name} is in use {where}: stop it, or choose another ledger"
