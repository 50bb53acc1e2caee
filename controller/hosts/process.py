"""A plain process as a host: the one that asks for it. For containers, tests and simulations, where
somebody else starts it again."""

import asyncio
import logging
import threading
from concurrent.futures import Future
from contextlib import closing

import uvloop

from controller.assemble import Setup, run
from controller.engines.process_planner import ProcessPlanner
from controller.fleet.workers import Fleet
from controller.migration.commands import Command, Lost, Outcome
from controller.ports import EngineLostError
from controller.samples import Sample
from placer.errors import PlacerError
from placer.placement import Placement

STARTS_S = 60.0

log = logging.getLogger("placer.controller")


class NoActors:
    """The door to engines that are Ray actors, where there is no Ray."""

    def __init__(self, fleet: Fleet) -> None:
        pass

    def moves_itself(self, pool: str, engine: str) -> bool:
        return False

    async def stands(self, pool: str, engine: str) -> Placement:
        raise EngineLostError(_why(pool, engine))

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        return Lost(_why(pool, engine))

    async def sample(self, pool: str, engine: str) -> Sample:
        raise EngineLostError(_why(pool, engine))


def _why(pool: str, engine: str) -> str:
    return (
        f"{engine} of {pool} is a Ray actor, and this controller runs without Ray: give --host ray"
    )


class Hosted:
    """A controller on a thread of this process, with planners in processes of their own."""

    def __init__(self, setup: Setup) -> None:
        self._port: Future[int] = Future()
        self._ended: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, args=(setup,), daemon=True)
        self._thread.start()

    def port(self) -> int:
        """Raises PlacerError if it cannot listen."""
        return self._port.result(timeout=STARTS_S)

    @property
    def ended(self) -> BaseException | None:
        """Why it did, if it has ended by itself."""
        return self._ended

    def end(self) -> None:
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _run(self, setup: Setup) -> None:
        try:
            uvloop.run(self._main(setup))
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            self._ended = error
            if not self._port.done():
                self._port.set_exception(error)
            elif isinstance(error, PlacerError):
                log.error("placer: the controller ends: %s", error)
            else:
                log.exception("placer: the controller ends")

    async def _main(self, setup: Setup) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        with closing(ProcessPlanner()) as planner:
            await run(setup, planner, NoActors, self._port.set_result)


def launch(setup: Setup) -> tuple[Hosted, int]:
    """A controller that listens, and its port."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    hosted = Hosted(setup)
    return hosted, hosted.port()


def look(hosted: Hosted) -> int | PlacerError | None:
    """Its port, or why it has ended."""
    if isinstance(hosted.ended, PlacerError):
        return hosted.ended
    if hosted.ended is not None:
        return PlacerError(f"the controller ended ({hosted.ended}): see what it wrote above")
    return hosted.port()


def end(hosted: Hosted | None) -> None:
    if hosted is not None:
        hosted.end()
