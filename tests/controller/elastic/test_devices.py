"""Arenas, the processes that own them, and who survives whom."""

import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from controller.elastic.arena import Arena, Layout
from controller.elastic.devices import Devices, LostDeviceError
from controller.elastic.hmm import (
    Copy,
    CopySeats,
    Digests,
    Filled,
    Free,
    Hold,
    Load,
    Report,
    Vacate,
)
from placer.arrays import digest
from placer.errors import FileError
from placer.memory.device import DeviceError
from placer.memory.memfd import Memfd
from tests.controller.elastic.tiny_weights import DENSE, PAGE, TinyWeights, of
from tests.controller.local_engine.tiny_engine import arenas_of, eventually

# 3 seats of [2 rows, 4 tokens, 8 bytes], and 6 pages.
LAYOUT = Layout(Memfd.granularity, DENSE, 2 * 4 * 8, 3, PAGE, 6)
FIRST, LAST = Filled(0, 0, 1), Filled(5, 1, 3)


@pytest.fixture
def devices() -> Iterator[Devices]:
    found = Devices(LAYOUT, TinyWeights(), spares=1)
    found.add([0, 1])
    yield found
    found.close()
    assert not arenas_of(os.getpid())


def kill(devices: Devices, name: str) -> None:
    os.kill(devices.pids()[name], signal.SIGKILL)


def table(devices: Devices, device: int) -> list[int]:
    return list(devices.ask(device, Report()).table)


def test_the_page_table_tells_what_was_read_and_copied(devices: Devices) -> None:
    dense, *pages = devices.ask(0, Load(True, [FIRST, LAST]))
    assert dense == digest(np.full(DENSE, 7, np.uint8))
    assert pages == [digest(of(0, 1)), digest(of(1, 3))]
    assert table(devices, 0) == [1, -1, -1, -1, -1, 7]
    copy = Copy(devices.name(0), True, [(5, Filled(2, 1, 3))], rate=0.0)
    assert devices.ask(1, copy, source=0) == DENSE + PAGE
    assert table(devices, 1) == [-1, -1, 7, -1, -1, -1]
    assert devices.ask(1, Digests(True, [2])) == [dense, pages[1]]
    devices.ask(1, Free([2]))
    assert table(devices, 1) == [-1] * 6


def test_a_page_that_could_not_be_read_is_free(devices: Devices) -> None:
    devices.ask(0, Load(False, [FIRST]))
    with pytest.raises(FileError, match="no layer 2"):
        devices.ask(0, Load(False, [Filled(0, 2, 1)]))
    assert table(devices, 0) == [-1] * 6


def test_no_page_is_copied_for_another(devices: Devices) -> None:
    devices.ask(0, Load(False, [FIRST]))
    copy = Copy(devices.name(0), False, [(0, Filled(0, 0, 2))], rate=0.0)
    with pytest.raises(DeviceError, match="page 0 of arena-0-0 does not hold expert 2 of layer 0"):
        devices.ask(1, copy, source=0)


def test_of_a_sequence_the_computed_tokens_are_copied(devices: Devices) -> None:
    with devices.descriptor(0) as descriptor:
        arena = Arena(Memfd(), LAYOUT, descriptor)
        arena.seat(2)[:] = np.arange(64)
        arena.close()
    message = CopySeats(devices.name(0), [(2, 1, 3)], rows=2, token_size=8)
    assert devices.ask(1, message, source=0) == 2 * 3 * 8
    with devices.descriptor(1) as descriptor:
        arena = Arena(Memfd(), LAYOUT, descriptor)
        found = arena.seat(1).reshape(2, 4, 8).copy()
        arena.close()
    wanted = np.arange(64, dtype=np.uint8).reshape(2, 4, 8)
    wanted[:, 3] = 0
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("order", [["hmm-0"], ["hmm-0", "the keeper"], ["the keeper", "hmm-0"]])
def test_no_single_death_loses_an_arena(devices: Devices, order: list[str]) -> None:
    before = devices.ask(0, Load(True, [FIRST, LAST]))
    for deaths, name in enumerate(order, 1):
        kill(devices, name)

        def is_noticed(deaths: int = deaths) -> bool:
            devices.supervise()
            return devices.restarts == deaths

        assert eventually(is_noticed)
        assert devices.ask(0, Digests(True, [0, 5])) == before


def test_who_loses_both_at_once_loses_the_arena_and_nobody_else(devices: Devices) -> None:
    devices.ask(1, Load(False, [FIRST]))
    kill(devices, "hmm-0")
    kill(devices, "the keeper")
    with pytest.raises(LostDeviceError, match="device 0 is gone"):
        devices.ask_all({0: (Report(), None), 1: (Report(), None)})
    assert table(devices, 1) == [1, -1, -1, -1, -1, -1]  # its answers are its own
    devices.remove(0)
    devices.add([0])
    assert table(devices, 0) == [-1] * 6


def test_memory_is_held_behind_the_pages_that_are_needed(devices: Devices) -> None:
    devices.ask(1, Load(True, [FIRST, LAST]))
    before = devices.ask(1, Digests(True, [5]))
    for pages in [[5], [2, 5], [5]]:
        devices.ask(1, Hold(pages))
        held = devices.ask(1, Report())
        assert held.table == [-1, -1, -1, -1, -1, 7]
        assert held.resident_bytes == LAYOUT.pages_at + len(pages) * LAYOUT.page_stride
    assert devices.ask(1, Digests(True, [5])) == before


def test_a_copy_is_the_same_wherever_there_is_memory_already(devices: Devices) -> None:
    devices.ask(0, Load(False, [FIRST]))
    devices.ask(1, Hold([2]))
    pages = [(0, Filled(page, 0, 1)) for page in (2, 3)]
    assert devices.ask(1, Copy(devices.name(0), False, pages, rate=0.0), source=0) == 2 * PAGE
    assert devices.ask(1, Digests(False, [2, 3])) == [digest(of(0, 1))] * 2


def test_a_spare_keeps_its_memory_and_nothing_in_it(devices: Devices) -> None:
    devices.ask(1, Load(True, [FIRST]))
    devices.ask(1, Hold(range(6)))
    assert devices.ask(1, Report()).resident_bytes >= LAYOUT.capacity
    assert devices.retire(used=[0]) == []
    held = devices.ask(1, Report())
    assert (held.table, held.resident_bytes >= LAYOUT.capacity) == ([-1] * 6, True)
    devices.add([2])
    assert devices.retire(used=[0]) == ["arena-1-1"]  # one spare is enough
    assert 1 not in devices
    devices.ask(2, Vacate())
