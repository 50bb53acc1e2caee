"""Where a sweep runs: on this machine's cores, or on a Ray cluster. The only door to Ray."""

import atexit
import fcntl
import ipaddress
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeVar

from placer.errors import PlacerError
from placer.extras import MissingError

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

TMP = "/tmp"  # whatever TMPDIR says: a socket's whole name may have 107 characters
FOLDERS = "placer-ray-"  # how the names of folders of a Ray begin
LOCKED = "locked"  # stands in those that are locked while their process lives
ENDS_S = 5.0  # in which processes of a Ray that ends stop writing to its folder
_own = ExitStack()  # what is undone when the Ray that was started here has ended
_TOKEN = secrets.token_hex(32)  # of every Ray that this process starts: Ray keeps the first


@contextmanager
def cores() -> Iterator[Map]:
    """A map over as many processes as there are cores; results come in order, as they are ready.

    Whatever ends it early, Ctrl-C too, ends the processes at once.
    """
    others = set(active_children())
    workers = max(os.cpu_count() or 1, 1)
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_end_with_parent
    )

    def over(
        function: Callable[[Argument], Result], arguments: Iterable[Argument]
    ) -> Iterator[Result]:
        # Workers start here, and are born deaf to Ctrl-C: it is this process's to hear.
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            futures = [pool.submit(function, argument) for argument in arguments]
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        return (future.result() for future in futures)

    try:
        yield over
    except BaseException:
        for worker in set(active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a worker: it ends with its parent, however that ends."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    # A thread may wait for long while a kernel computes; Linux's signal, which ends it, does not.
    end = parent.sentinel
    fcntl.fcntl(end, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_ASYNC)


@contextmanager
def ray_cluster(address: str) -> Iterator[Map]:
    """A map over the cluster at ``address``; "local" starts one here for as long as it takes."""
    connect(address)
    import ray

    def over(
        function: Callable[[Argument], Result], arguments: Iterable[Argument]
    ) -> Iterator[Result]:
        remote: Any = ray.remote(_call)
        shared = ray.put(function)
        yield from map(ray.get, [remote.remote(shared, argument) for argument in arguments])

    try:
        yield over
    finally:
        disconnect()


def connect(address: str, **options: Any) -> None:
    """To the Ray cluster at ``address``. "local" starts one here, for this process and its own
    alone, until ``disconnect``. ``options`` are ray.init's."""
    try:
        import ray
    except ImportError as error:
        raise MissingError("--ray", "ray", error.name) from error

    if (found := re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)) is not None:
        try:  # Ray itself would wait for minutes
            socket.create_connection((found[1], int(found[2])), timeout=5).close()
        except OSError as error:
            reason = error.strerror or str(error)
            raise PlacerError(f"no Ray cluster at {address!r} ({reason}): check --ray") from error
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    told: dict[str, Any] = {"address": address, **quiet, **options}
    try:
        if address == "local":
            told["num_cpus"] = os.cpu_count()  # and never RAY_ADDRESS's, which needs "local"
            # Ray lets everybody write to its folder: it stands in one that only this user opens.
            told["_temp_dir"] = str(_own.enter_context(_private()) / "ray")
            atexit.register(disconnect)
        try:
            ray.init(**told)
        except Exception:  # on a busy host its own processes may not be up in time: once more
            if address != "local":
                raise
            ray.shutdown()
            ray.init(**told)
        if address == "local":
            _check_private(ray)
    except Exception as error:  # Ray raises plain ones, too
        disconnect()
        reason = str(error).splitlines()[0]
        raise PlacerError(f"no Ray cluster at {address!r} ({reason}): check --ray") from error


def disconnect() -> None:
    """From the Ray cluster. One that was started here ends, and nothing of it stays."""
    import ray

    ray.shutdown()
    _own.close()
    atexit.unregister(disconnect)


@contextmanager
def _private() -> Iterator[Path]:
    """A folder for a Ray that only this user reaches: it listens on this host alone, and answers
    those who show a token that nobody else can read."""
    from ray._private import ray_constants

    _remove_orphans()
    folder = Path(mkdtemp(prefix=FOLDERS, dir=TMP))  # mode 0700
    lives = _locked(folder)
    (folder / LOCKED).touch()
    token = folder / "token"
    token.touch(0o600)
    token.write_text(_TOKEN)
    # Ray binds loopback where clusters are not supported, as on macOS, and on Linux when it is told
    # so; this process may have read it before. Authentication is on unless the environment says no.
    told = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_TOKEN_PATH": str(token)}
    names = (*told, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ |= told
    clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield folder
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = clusters
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _remove(folder)
        if lives is not None:
            os.close(lives)


def _remove_orphans() -> None:
    """Folders of this user's processes that were killed before they could remove them."""
    for mark in Path(TMP).glob(f"{FOLDERS}*/{LOCKED}"):
        with suppress(OSError):  # somebody else does the same
            folder = mark.parent
            is_mine = folder.lstat().st_uid == os.getuid()
            if is_mine and (free := _locked(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(free)


def _locked(folder: Path) -> int | None:
    """A descriptor that locks it for as long as this process lives; None if another has it."""
    found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(found)
        return None
    return found


def _check_private(ray: Any) -> None:
    """Another version of Ray may not listen to what ``_private`` says."""
    address = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(address).is_loopback or os.environ.get("RAY_AUTH_MODE") != "token":
        raise PlacerError(f"Ray {ray.__version__} would let others in at {address}")


def _remove(folder: Path) -> None:
    until_s = time.monotonic() + ENDS_S
    while folder.exists() and time.monotonic() < until_s:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)


def _call(function: Callable[[Argument], Result], argument: Argument) -> Result:
    return function(argument)
