"""Two controllers on one ledger, of which the first is paused."""

import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

from controller.ledger.holder import SILENT_S
from tests.cli.conftest import Placer


def serve(folder: Path, *options: str) -> "subprocess.Popen[str]":
    command = [str(Path(sys.executable).with_name("placer")), "serve", "--host", "process"]
    command += ["--listen", "127.0.0.1:0", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, text=True, **pipes)  # type: ignore[call-overload]


def read_until(lines: IO[str] | None, pattern: str) -> re.Match[str]:
    assert lines is not None
    for line in lines:
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"it ended without {pattern}")


@pytest.fixture
def pair(tmp_path: Path) -> "Iterator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]":
    """One that serves, and one that waits for it."""
    first = serve(tmp_path)
    try:
        read_until(first.stdout, "look: placer status")
        second = serve(tmp_path, "--standby")
        try:
            told = rf"placer.db is in use by process {first.pid} on .*: waiting until it ends"
            read_until(second.stderr, told)
            yield first, second
        finally:
            second.kill()
            second.communicate()
    finally:
        first.kill()
        first.communicate()


@pytest.mark.slow
def test_a_paused_controller_is_followed_and_ends_when_it_wakes(
    pair: "tuple[subprocess.Popen[str], subprocess.Popen[str]]", tmp_path: Path, placer: Placer
) -> None:
    first, second = pair
    first.send_signal(signal.SIGSTOP)
    with closing(sqlite3.connect(tmp_path / "placer.db", isolation_level=None)) as connection:
        connection.execute(f"UPDATE ledger SET beat_s = beat_s - {SILENT_S}")
    address = read_until(second.stdout, r"the controller listens on (\S+)")[1]
    first.send_signal(signal.SIGCONT)
    _, told = first.communicate(timeout=60)
    assert first.returncode == 2
    last = told.splitlines()[-1]
    assert re.fullmatch(
        rf"error: .*placer.db was taken over by process {second.pid} on .*: this one ends", last
    )
    assert "Traceback" not in told
    assert placer("status", "--to", address).code == 0


@pytest.mark.slow
def test_who_waits_comes_when_the_other_ends_and_goes_when_it_is_told(
    pair: "tuple[subprocess.Popen[str], subprocess.Popen[str]]", tmp_path: Path
) -> None:
    first, second = pair
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=60) == 0
    read_until(second.stdout, r"the controller listens on \S+")
    third = serve(tmp_path, "--standby")
    try:
        read_until(third.stderr, rf"in use by process {second.pid} on ")
        third.send_signal(signal.SIGTERM)
        assert third.wait(timeout=60) == 0
    finally:
        third.kill()
        third.communicate()
