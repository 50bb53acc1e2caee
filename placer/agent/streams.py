"""Streams to and from a controller, which break and are opened again."""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

import grpc

from placer.agent.reporter import PATIENCE_S, POLL_S
from placer.channel import Settings
from placer.client import Caller, ControllerError, NobodyError, failure
from placer.clock import ThreadClock
from placer.errors import PlacerError

BREATH_S = 0.01  # between plans, of which an honest controller has few
AGENT = Caller(
    whose="the controller at {address}: ",
    nobody="is PLACER_AGENT its address, does it run, and do both use TLS or neither?",
    denied="; is PLACER_TOKEN, or the file of PLACER_TOKEN_FILE, an agent's token?",
)


class Pushes:
    """One stream of pushes: the next goes out when the last is answered."""

    def __init__(self, address: str, stub: Any) -> None:
        self._address = address
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._turns: SimpleQueue[bool] = SimpleQueue()
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._call = stub.Push(iter(self._requests.get, None))
        # A stream's deadline would be for all of it; so it is read here, and waited for in ask().
        Thread(target=self._read, name="placer-push", daemon=True).start()

    @property
    def is_open(self) -> bool:
        return bool(self._call.is_active())

    def ask(self, request: Any, deadline_s: float) -> Any:
        """The answer. Raises ControllerError if there is none; the stream is then to be closed."""
        self._requests.put(request)
        self._turns.put(True)
        try:
            answer = self._answers.get(timeout=deadline_s)
        except Empty:
            raise NobodyError(
                f"no controller answers at {self._address} within {deadline_s:g} s: {AGENT.nobody}"
            ) from None
        if isinstance(answer, PlacerError):
            raise answer
        return answer

    def close(self) -> None:
        self._call.cancel()
        self._requests.put(None)
        self._turns.put(False)

    def _read(self) -> None:
        """One answer for each push: what else is sent stays where it is."""
        while self._turns.get():
            try:
                self._answers.put(next(self._call))
            except StopIteration:
                self._answers.put(_ended(self._address, "stream of pushes"))
            except (grpc.RpcError, PlacerError) as error:
                self._answers.put(told(self._address, error))


class Watch:
    """Keeps the newest plan that a stream brings, and opens it again when it breaks.

    The thread begins with the first question, and waits between answers and after breaks: a
    controller that is dead or mad costs the engine's host nothing.
    """

    def __init__(self, address: str, open_stream: Callable[[int], Any], clock: ThreadClock) -> None:
        self._address, self._open, self._clock = address, open_stream, clock
        self._lock = Lock()
        self._epoch, self._file = 0, b""
        self._broken: PlacerError | None = None
        self._told = ""  # of the last break; empty since the stream worked
        self._stopped = Event()
        self._call: Any = None
        self._thread: Thread | None = None

    def newest(self, after: int) -> tuple[int, bytes] | None:
        """The newest epoch and file, if above ``after``. Raises what broke the stream, once."""
        with self._lock:
            if self._epoch > after:
                return self._epoch, self._file
            self._epoch, self._file = after, b""
            if self._thread is None:
                self._thread = Thread(target=self._run, name="placer-watch", daemon=True)
                self._thread.start()
            broken, self._broken = self._broken, None
        if broken is not None:
            raise broken
        return None

    def stop(self) -> None:
        self._stopped.set()
        if self._call is not None:
            self._call.cancel()

    def _run(self) -> None:
        pause_s = 0.0
        while not self._clock.wait(self._stopped, pause_s):
            begun_s = self._clock.monotonic()
            broken: PlacerError
            try:
                self._read()
                broken = _ended(self._address, "watch for plans")
            except (grpc.RpcError, PlacerError) as error:
                broken = told(self._address, error)
            except Exception as error:  # a bug: it must not end the thread
                broken = ControllerError(f"the watch of {self._address} failed: {error!r}")
            stood = self._clock.monotonic() - begun_s > PATIENCE_S
            pause_s = POLL_S if stood else min(max(2 * pause_s, POLL_S), PATIENCE_S)
            with self._lock:
                if stood or str(broken) != self._told:
                    self._broken, self._told = broken, str(broken)

    def _read(self) -> None:
        self._call = self._open(self._epoch)
        for response in self._call:
            with self._lock:
                self._told = ""
                if response.epoch > self._epoch:
                    self._epoch, self._file = response.epoch, response.file
            if self._clock.wait(self._stopped, BREATH_S):
                return


def told(address: str, error: Any) -> PlacerError:
    """What broke a call, in an agent's log."""
    return failure(error, address, Settings.of_environment(), AGENT)


def _ended(address: str, what: str) -> ControllerError:
    return ControllerError(
        f"the controller at {address} ended the {what}: is it placer's, and of this version?"
    )
