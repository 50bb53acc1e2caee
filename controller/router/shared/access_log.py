"""One line a request: who, what, how it ended. Never what was asked or answered."""

import sys
from pathlib import Path
from typing import TextIO

from placer.errors import FileError

MOST = 100_000  # lines that wait to be written; more are counted only


class AccessLog:
    """Written when ``flush`` says so: a line a request would be a write a request. target: a file,
    ``-`` for stdout; empty: none is kept"""

    def __init__(self, target: str) -> None:
        """Raises FileError."""
        self.is_on = bool(target)
        self._lines: list[str] = []
        self._missed = 0
        self._file: TextIO | None = None
        if target == "-":
            self._file = sys.stdout
        elif target:
            try:
                self._file = Path(target).open("a", encoding="utf-8")  # noqa: SIM115 - until close
            except OSError as error:
                raise FileError(
                    f"cannot write {target}: {error.strerror}: choose another file"
                ) from error

    def add(
        self, peer: str, method: bytes, route: str, status: int, size: int, seconds: float,
        place: str, tries: int, why: str,
    ) -> None:  # fmt: skip
        """place: engine and rank; tries: ranks that it was sent to; why: it was not answered"""
        if len(self._lines) >= MOST:
            self._missed += 1
            return
        told = f' "{_plain(why)}"' if why else ""
        asked, sent = f"{peer} {method.decode()} {route}", f"{status} {size} {seconds:.4f}"
        self._lines.append(f"{asked} {sent} {place or '-'} {tries}{told}\n")

    def flush(self) -> None:
        if self._file is None or not (self._lines or self._missed):
            return
        lines, self._lines = self._lines, []
        if self._missed:
            lines.append(f"- {self._missed} more requests\n")
            self._missed = 0
        try:
            self._file.writelines(lines)
            self._file.flush()
        except OSError:  # a full disk keeps nobody from being served
            self._missed += len(lines)

    def close(self) -> None:
        self.flush()
        if self._file not in (None, sys.stdout):
            self._file.close()


def _plain(text: str) -> str:
    return " ".join(text.replace('"', "'").split())[:200]
