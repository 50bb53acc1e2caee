"""Ray as a host: one controller in a process of its own, an actor that starts again."""

import logging
import os
import threading
from concurrent.futures import Future
from typing import Any

import ray
import uvloop
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from controller.assemble import Setup, run
from controller.engines.ray_engines import NAMESPACE, RayEngines, RayPlanner
from placer.errors import PlacerError
from placer.parallel import disconnect

ACTOR = "controller"
STARTS_S = 60.0
LOOKS_S = 5.0

log = logging.getLogger("placer.controller")


class Controller:
    """The actor. Its loop runs on a thread, and if that ends, so does the process."""

    def __init__(self, setup: Setup) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        self._port: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(setup,), daemon=True)
        self._thread.start()

    def port(self) -> int | PlacerError:
        """Where it listens; or why it cannot, in placer's words and not in Ray's."""
        try:
            return self._port.result(timeout=STARTS_S)
        except PlacerError as error:
            return error

    def pid(self) -> int:
        return os.getpid()

    def _run(self, setup: Setup) -> None:
        try:
            uvloop.run(run(setup, RayPlanner(), RayEngines, self._port.set_result))
        except PlacerError as error:
            if not self._port.done():
                self._port.set_exception(error)
                return
            log.error("placer: the controller ends, to be started again: %s", error)
        except BaseException:
            log.exception("placer: the controller ends, to be started again")
        os._exit(1)


def launch(setup: Setup) -> tuple[Any, int]:
    """The handle of the controller of the cluster that this process is connected to, and its port.

    A named, detached actor on this node, where its ledger and its address are: it outlives whoever
    launched it, and starts again from its ledger.
    """
    try:
        ray.get_actor(ACTOR, namespace=NAMESPACE)
    except ValueError:
        pass
    else:
        raise PlacerError("a controller runs in this Ray cluster already: stop that one first")
    actor: Any = ray.remote(Controller)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"name": ACTOR, "namespace": NAMESPACE, "lifetime": "detached"}
    options |= {"scheduling_strategy": here}
    handle = actor.options(num_cpus=0, max_restarts=-1, **options).remote(setup)
    try:
        port = ray.get(handle.port.remote())
    except RayError as error:
        ray.kill(handle)
        raise PlacerError("the controller died as it started: see what it wrote above") from error
    if isinstance(port, PlacerError):
        ray.kill(handle)
        raise port
    return handle, port


def look(handle: Any) -> int | PlacerError | None:
    """Its port, or why it could not start again; None if it does not answer."""
    try:
        found: int | PlacerError = ray.get(handle.port.remote(), timeout=LOOKS_S)
    except RayError:
        return None
    return found


def end(handle: Any) -> None:
    """End the controller, if there is one, and this process's connection to Ray."""
    if handle is not None:
        ray.kill(handle)
    disconnect()
