"""A ledger's file that is only read, while its controller may be writing."""

import sqlite3
from pathlib import Path

from controller.ledger.file import APPLICATION, check_format, reading, text
from controller.ledger.holder import LedgerError


def look_into(path: Path) -> sqlite3.Connection:
    """Raises LedgerError for what is no whole ledger of a format that is known."""
    if not path.is_file():
        raise LedgerError(f"there is no ledger {path}: give the file of placer serve --ledger")
    connection = reading(path)
    connection.text_factory = text
    try:
        try:
            (application,) = connection.execute("PRAGMA application_id").fetchone()
        except sqlite3.DatabaseError:
            application = 0
        if application != APPLICATION:
            raise LedgerError(f"{path} is no ledger: give the file of placer serve --ledger")
        check_format(path, connection)
    except BaseException:
        connection.close()
        raise
    return connection
