"""An engine's devices: their memory processes, and the keeper of their arenas.

A memory process that dies is started again on the arena that the keeper has; a keeper that dies is
given the descriptors again by the memory processes. Only who loses both loses an arena.
"""

import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

from controller.elastic.arena import Layout
from controller.elastic.hmm import Adopt, Create, Export, Vacate, Weights
from placer.errors import PlacerError
from placer.memory.keeper import Drop, Give, Keep
from placer.memory.process import GoneError, Process

HMM, KEEPER = "controller.elastic.hmm", "placer.memory.keeper"
ATTEMPTS = 20


class LostDeviceError(PlacerError):
    """A device whose memory is gone."""

    def __init__(self, device: int) -> None:
        super().__init__(f"device {device} is gone, and what was in its memory")
        self.device = device


class Devices:
    """Memory processes, by device. Any thread may ask; a process answers one of them at a time.

    spares: how many that are not used are kept ready
    """

    def __init__(self, layout: Layout, weights: Weights, spares: int) -> None:
        self.layout, self._weights = layout, weights
        self.restarts, self._spares = 0, spares
        self._hmms: dict[int, Process] = {}
        self._locks: dict[int, threading.RLock] = {}
        self._arenas: dict[int, str] = {}  # names are never used again
        self._numbers = count()
        self.kept: set[int] = set()  # devices whose arenas this keeper has
        self._keeping = threading.Lock()
        self._keeper = Process(KEEPER, "the keeper")

    def __contains__(self, device: int) -> bool:
        return device in self._hmms

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._hmms))

    def pids(self) -> dict[str, int]:
        """Of memory processes and of the keeper, by name."""
        return {one.name: one.pid for one in (*self._hmms.values(), self._keeper)}

    def name(self, device: int) -> str:
        """Of its arena."""
        return self._arenas[device]

    def add(self, devices: Iterable[int]) -> None:
        """Start those that are not there; their arenas are empty."""
        new = [one for one in devices if one not in self._hmms]
        for device in new:
            self._locks.setdefault(device, threading.RLock())
        with self._held(new):  # whoever supervises must not talk to them meanwhile
            for device in new:
                self._arenas[device] = f"arena-{device}-{next(self._numbers)}"
                self._hmms[device] = Process(HMM, f"hmm-{device}")
            for device in new:
                with suppress(GoneError):
                    self._hmms[device].say(Create(self.layout, self._weights))
            for device in new:
                descriptor = self._created(device)
                self._keep(device, descriptor)
                os.close(descriptor)

    def retire(self, used: Collection[int]) -> list[str]:
        """Keep those that are not used as spares, or give their memory back if there are enough;
        returns the names of arenas that are gone."""
        waiting = [device for device in self if device not in used]
        surplus = waiting[: max(len(waiting) - self._spares, 0)]
        for device in waiting[len(surplus) :]:
            self.ask(device, Vacate())
        gone = [self.name(device) for device in surplus]
        for device in surplus:
            self.remove(device)
        return gone

    def remove(self, device: int) -> None:
        """Give its memory back, or what is left of it."""
        with self._held([device]):
            hmm = self._hmms.pop(device)
            self.kept.discard(device)
            self._ask_keeper(Drop(self._arenas.pop(device)))
            hmm.end()

    @contextmanager
    def descriptor(self, device: int) -> Iterator[int]:
        """Of its arena. Raises LostDeviceError."""
        found = self._given(device)
        if not found:
            raise LostDeviceError(device)
        try:
            yield found[0]
        finally:
            os.close(found[0])

    def ask(self, device: int, message: object, source: int | None = None) -> Any:
        """Its answer; asked again of a process that was started in place of a dead one.
        source: whose arena goes with it. Raises LostDeviceError"""
        return self.ask_all({device: (message, source)})[device]

    def ask_all(self, messages: Mapping[int, tuple[object, int | None]]) -> dict[int, Any]:
        """Of several at once."""
        answers = {}
        with self._held(messages):
            left = dict(messages)
            for _ in range(ATTEMPTS):
                failed: PlacerError | None = None  # the others' answers must not wait meanwhile
                for device, (message, source) in list(left.items()):
                    try:
                        self._say(device, message, source)
                    except GoneError:
                        continue
                    except LostDeviceError as lost:
                        failed, _ = lost, left.pop(device)
                for device in list(left):
                    try:
                        answers[device] = self._hmms[device].hear()[0]
                        del left[device]
                    except GoneError:
                        try:
                            self._start_again(device)
                        except LostDeviceError as lost:
                            failed, _ = lost, left.pop(device)
                    except PlacerError as error:
                        failed, _ = error, left.pop(device)
                if failed is not None:
                    raise failed
                if not left:
                    return answers
        raise LostDeviceError(next(iter(left)))

    def supervise(self) -> None:
        """Start again what died unasked. Raises LostDeviceError."""
        if not self._keeper.is_alive:
            with self._keeping:
                if not self._keeper.is_alive:  # nor started again meanwhile
                    self._start_keeper()
        for device, lock in list(self._locks.items()):
            if not lock.acquire(blocking=False):
                continue  # somebody asks it, and will see
            try:
                if device not in self._hmms:
                    continue
                if not self._hmms[device].is_alive:
                    self._start_again(device)
                elif device not in self.kept:
                    with self.descriptor(device):
                        pass  # the keeper has it, too, from now on
            finally:
                lock.release()

    def close(self) -> None:
        for one in (*self._hmms.values(), self._keeper):
            one.socket.close()
        for one in (*self._hmms.values(), self._keeper):
            one.end(grace_s=5.0)

    @contextmanager
    def _held(self, devices: Iterable[int]) -> Iterator[None]:
        locks = [self._locks[device] for device in sorted(devices)]
        for lock in locks:
            lock.acquire()
        try:
            yield
        finally:
            for lock in locks:
                lock.release()

    def _say(self, device: int, message: object, source: int | None) -> None:
        if source is None:
            self._hmms[device].say(message)
        else:
            with self.descriptor(source) as descriptor:
                self._hmms[device].say(message, [descriptor])

    def _start_again(self, device: int) -> None:
        """A memory process on the arena of a dead one."""
        found = self._given(device)
        if not found:
            raise LostDeviceError(device)
        try:
            for _ in range(ATTEMPTS):
                with suppress(GoneError):
                    self._replaced(device).ask(Adopt(self.layout, self._weights), found)
                    return
        finally:
            os.close(found[0])
        raise LostDeviceError(device)

    def _created(self, device: int) -> int:
        """The descriptor of an arena that was asked for."""
        for _ in range(ATTEMPTS):
            try:
                return self._hmms[device].hear()[1][0]
            except GoneError:
                with suppress(GoneError):
                    self._replaced(device).say(Create(self.layout, self._weights))
        raise LostDeviceError(device)

    def _replaced(self, device: int) -> Process:
        """Another process for a dead one."""
        self._hmms[device].end()
        self._hmms[device] = Process(HMM, f"hmm-{device}")
        self.restarts += 1
        return self._hmms[device]

    def _keep(self, device: int, descriptor: int) -> None:
        self._ask_keeper(Keep(self._arenas[device]), [descriptor])
        self.kept.add(device)

    def _given(self, device: int) -> list[int]:
        """The arena's descriptor, from the keeper; a new keeper is given it first."""
        name = self._arenas[device]
        found = self._ask_keeper(Give(name))
        if not found:
            with self._locks[device], suppress(GoneError):
                self._hmms[device].say(Export())
                _, found = self._hmms[device].hear()
                self._keep(device, found[0])
        return found

    def _ask_keeper(self, message: object, descriptors: Sequence[int] = ()) -> list[int]:
        with self._keeping:
            for _ in range(ATTEMPTS):
                try:
                    self._keeper.say(message, descriptors)
                    return self._keeper.hear()[1]
                except GoneError:
                    self._start_keeper()
        raise PlacerError(f"the keeper of arenas died {ATTEMPTS} times: see the engine's stderr")

    def _start_keeper(self) -> None:
        self._keeper.end()
        self._keeper = Process(KEEPER, "the keeper")
        self.kept.clear()
        self.restarts += 1
