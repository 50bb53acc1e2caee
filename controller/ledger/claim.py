"""The locks of a ledger's holder."""

import fcntl
import os
import sqlite3
import stat
import struct
from contextlib import closing, suppress
from pathlib import Path

from controller.ledger.holder import InUse, LedgerError, in_use, seen, this_process

PRIVATE = 0o600  # whatever the umask: reasons and names are nobody else's
LOCKED_BYTE = 2**62


class Claim:
    """How others on this machine see at once that a ledger's holder is there, by whatever name, and
    that it has ended, however it did.

    Two files are locked: one beside the ledger, which is its path's, and the ledger's own, to which
    a hard link, a bind mount or a rename gives other paths. The file beside it stays, or two could
    hold one each. Who may write is not said by locks: a paused holder keeps them.
    """

    def __init__(self, path: Path) -> None:
        """path: no symlink. Raises InUse if somebody is there and not known to be silent."""
        self._path, self._files = path, list[int]()
        self.locked = False
        beside = path.with_name(f"{path.name}.lock")
        try:
            found = self._open(
                beside, f"cannot write {beside}", "make the folder, or choose another"
            )
            os.fchmod(found, PRIVATE)
            holder = os.pread(found, 300, 0).decode(errors="replace") or "unknown"
            self.locked = self._lock(found)
            if not self.locked and not _is_silent(path, holder):
                raise InUse(in_use(path, f"by process {holder}"))
            with suppress(OSError):  # a full disk must not keep a controller from reading
                os.truncate(found, 0)
                os.pwrite(found, this_process().encode(), 0)
            if path.is_file() and os.access(path, os.W_OK):  # else _check says what is wrong
                self.take()
        except BaseException:
            self.close()
            raise

    def take(self) -> None:
        """Lock the ledger's own file, which becomes an empty one if it is not there."""
        if len(self._files) > 1:
            return
        path = self._path
        found = self._open(path, f"cannot write {path}", "choose a file that is yours")
        if not self._lock(found) and self.locked:
            raise InUse(in_use(path, "under another name"))
        names = os.fstat(found).st_nlink
        if names > 1:  # SQLite keeps a log beside each name, and knows of one only
            raise LedgerError(
                f"{path} has {names} names (hard links), and by each it would be another ledger"
                ": keep one of them, or choose another ledger"
            )

    def keep(self) -> bool:
        """Take the locks once the paused holder that had them has ended. Whether they are ours."""
        if not self.locked:
            self.locked = all(self._lock(found) for found in self._files)
        return self.locked

    def close(self) -> None:
        while self._files:
            found = self._files.pop()
            _claimed.discard(found)
            os.close(found)

    def _open(self, path: Path, what: str, remedy: str) -> int:
        try:
            found = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)
        except OSError as error:
            raise LedgerError(f"{what}: {error.strerror}: {remedy}") from error
        self._files.append(found)
        _claimed.add(found)
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise LedgerError(f"{what}: it is no regular file: {remedy}")
        return found

    def _lock(self, found: int) -> bool:
        """Whether nobody else has it."""
        try:
            _lock(found)
        except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says POSIX
            return False
        except OSError as error:
            raise LedgerError(
                f"cannot lock {self._path}: {error.strerror}: put the ledger on a local disk"
            ) from error
        return True


def _is_silent(path: Path, holder: str) -> bool:
    """Whether the file says of who has its locks that it is silent. An earlier version says nothing
    there, and is not to be overtaken."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            known = seen(connection)
    except sqlite3.Error:
        return False
    return known is not None and known.name == holder and known.is_silent


# Files of claims. A forked child is no holder: a planner that outlives a killed controller must not
# keep the next one out.
_claimed: set[int] = set()


def _let_go() -> None:
    while _claimed:
        os.close(_claimed.pop())


os.register_at_fork(after_in_child=_let_go)


def _lock(file: int) -> None:
    """Until it is closed, and far beyond the bytes that SQLite locks. Raises BlockingIOError."""
    if hasattr(fcntl, "F_OFD_SETLK"):
        # Linux's locks of open files: this process's own may be opened and closed again meanwhile.
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, LOCKED_BYTE, 1, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, LOCKED_BYTE)
