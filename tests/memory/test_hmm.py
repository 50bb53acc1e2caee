"""Borrowers of a real HMM: three bytes that the first who comes writes, and all others get."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from placer.errors import PlacerError
from placer.memory.borrowing import BorrowError, borrow
from placer.memory.device import Run
from placer.memory.lending import serve
from placer.memory.memfd import CopyOnWrite
from placer.memory.ranges import Range, seen_at
from tests.processes import children

SERVE = "from pathlib import Path; from placer.memory.lending import serve; serve(Path({!r}))"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "hmm.sock"
    with subprocess.Popen([sys.executable, "-c", SERVE.format(str(path))]) as process:
        while not path.is_socket():
            assert process.poll() is None
            time.sleep(0.05)
        yield path
        process.kill()


def fill(descriptor: int) -> None:
    os.write(descriptor, b"abc")


def nothing(descriptor: int) -> None:
    raise AssertionError("it is filled already")


def read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return os.pread(file.fileno(), 100, 0)


def test_the_first_fills_it_and_all_others_get_it(place: Path) -> None:
    filled = []

    def come(number: int) -> bytes:
        def fill_and_tell(descriptor: int) -> None:
            filled.append(number)
            fill(descriptor)

        return read(borrow(place, fill_and_tell))

    with ThreadPoolExecutor(5) as threads:
        assert list(threads.map(come, range(5))) == [b"abc"] * 5
    assert len(filled) == 1


def test_nobody_can_write_it_afterwards(place: Path) -> None:
    descriptor = borrow(place, fill)
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_a_page_that_is_written_becomes_the_writers_own(place: Path) -> None:
    descriptor = borrow(place, fill)
    device = CopyOnWrite()
    size = device.granularity
    one, other = (Range(device, [Run(descriptor, 0, size)]) for _ in range(2))
    one.array()[0] = ord("x")
    assert bytes(one.array()[:3]) == b"xbc"
    assert bytes(other.array()[:3]) == b"abc"
    for view in (one, other):
        view.close()
    assert read(descriptor) == b"abc"


def test_reserved_addresses_are_zeros_until_memory_is_mapped_there(place: Path) -> None:
    descriptor = borrow(place, fill)
    device = CopyOnWrite()
    size = device.granularity
    address = device.reserve(size)
    seen = seen_at(address, size)
    assert not seen.any()
    device.map(address, Run(descriptor, 0, size))
    assert bytes(seen[:3]) == b"abc"
    del seen
    device.release(address, size)
    os.close(descriptor)


def test_whoever_dies_while_he_fills_it_leaves_it_to_the_next(place: Path) -> None:
    def die(descriptor: int) -> None:
        os.write(descriptor, b"xy")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        borrow(place, die)
    assert read(borrow(place, fill)) == b"abc"


def test_what_it_has_outlives_its_process(place: Path) -> None:
    assert read(borrow(place, fill)) == b"abc"
    (server,) = servers()
    os.kill(server, signal.SIGKILL)
    assert read(borrow(place, nothing)) == b"abc"


def servers() -> set[int]:
    """Children of children of this process."""
    return {pid for one in children(os.getpid()) for pid in children(one)}


def test_whoever_waits_when_it_dies_is_served_by_the_next(place: Path) -> None:
    begun, killed = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        begun.set()
        killed.wait()

    with ThreadPoolExecutor(2) as threads:
        filling = threads.submit(borrow, place, slow)
        begun.wait()
        waiting = threads.submit(borrow, place, fill)
        (server,) = servers()
        os.kill(server, signal.SIGKILL)
        killed.set()
        with pytest.raises(BorrowError, match="died while its memory was filled: start this"):
            filling.result()
        assert read(waiting.result()) == b"abc"


def test_the_socket_is_its_owners_alone(place: Path) -> None:
    assert place.stat().st_mode & 0o777 == 0o600


def test_two_do_not_listen_at_one_path(place: Path) -> None:
    with pytest.raises(PlacerError, match=f"another HMM listens at {place}: use it, or"):
        serve(place)


def test_what_a_killed_one_left_is_not_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "hmm.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with subprocess.Popen([sys.executable, "-c", SERVE.format(str(path))]) as process:
        while True:
            try:
                descriptor = borrow(path, fill)
                break
            except BorrowError:
                assert process.poll() is None
        process.kill()
    assert read(descriptor) == b"abc"


@pytest.mark.parametrize("kind", ["file", "folder", "missing/hmm.sock", "x" * 200])
def test_a_path_that_cannot_be_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    path = tmp_path / kind
    with pytest.raises(PlacerError, match=f"cannot listen at {path} "):
        serve(path)
    assert (tmp_path / "file").read_text() == "mine"


def test_nobody_at_a_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(BorrowError, match=f"no HMM at {tmp_path / 'x'} .*: start one with `placer"):
        borrow(tmp_path / "x", nothing)
