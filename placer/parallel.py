"""Where a sweep runs: on this machine's cores, or on a Ray cluster. The only door to Ray."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from typing import Any, TypeVar

from placer.errors import PlacerError
from placer.extras import MissingError

Argument = TypeVar("Argument")
Result = TypeVar("Result")
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


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
        ray.shutdown()


def connect(address: str, **options: Any) -> None:
    """To the Ray cluster at ``address``; "local" starts one here. ``options`` are ray.init's."""
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
    where: dict[str, Any] = {"address": address}
    if address == "local":
        where["num_cpus"] = os.cpu_count()  # and never RAY_ADDRESS's, which needs "local"
    defaults = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    told = {**where, **defaults, **options}
    try:
        try:
            ray.init(**told)
        except Exception:  # on a busy host its own processes may not be up in time: once more
            if address != "local":
                raise
            ray.shutdown()
            ray.init(**told)
    except Exception as error:  # Ray raises plain ones, too
        reason = str(error).splitlines()[0]
        raise PlacerError(f"no Ray cluster at {address!r} ({reason}): check --ray") from error


def _call(function: Callable[[Argument], Result], argument: Argument) -> Result:
    return function(argument)
