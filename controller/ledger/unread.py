"""The records of a ledger that could not be read: named once in the log, and left out."""

import logging

from controller.ledger.records import LeftOut, Unreadable

log = logging.getLogger("placer.controller")


class Unread:
    """ledger: its name"""

    def __init__(self, ledger: str) -> None:
        self._ledger = ledger
        self._found: dict[int, LeftOut] = {}

    @property
    def all(self) -> dict[int, LeftOut]:
        """By their numbers."""
        return dict(self._found)

    def add(self, record: LeftOut) -> Unreadable:
        """What to raise of it."""
        what = f"{record.kind} {record.id}"
        if self._found.setdefault(record.number, record) is record:
            log.warning("placer: %s of %s is left out: it %s", what, self._ledger, record.why)
        return Unreadable(
            f"{self._ledger}: {what} {record.why} (version {record.version}): do without it, or put"
            " a backup of the ledger in its place"
        )
