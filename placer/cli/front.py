"""placer front: the data plane, until Ctrl-C."""

import asyncio
import gc
import logging
import resource
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from placer.channel import Settings
from placer.cli.console import note, out
from placer.client import is_address
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.extras import MissingError

ADDRESS = "127.0.0.1:8080"
ENGINE = "engine"


def front(
    controller: Annotated[
        str, typer.Option(help="A controller's host:port, which knows the engines.")
    ] = "",
    pool: Annotated[str, typer.Option(help="With --controller: whose engines.")] = "",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL[,URL...]",
            help="Without a controller: an engine's address; of one whose ranks have ports of their "
            "own, all of them. Again for each engine.",
        ),
    ] = None,
    listen: Annotated[str, typer.Option(help="host:port; port 0 chooses one.")] = ADDRESS,
    scheduler: Annotated[
        str, typer.Option(help="seconds, least_loaded or another: docs/prescheduling.md.")
    ] = "least_loaded",
    tokenizer: Annotated[
        str,
        typer.Option(
            help='The model\'s tokenizer.json, for prompts that are text; "engine" asks an engine.',
            show_default=False,
        ),
    ] = "",
    config: Annotated[
        Path | None, typer.Option(help="YAML: its limits, see docs/front.md.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="YAML: the API keys of clients, as client: [...].")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Its certificate, in PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="That certificate's key.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Whose certificates clients must show (mutual TLS).")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen for other hosts without TLS or keys.")
    ] = False,
    engine_key: Annotated[
        Path | None, typer.Option(help="A file with the API key that engines ask for.")
    ] = None,
    access_log: Annotated[
        str, typer.Option(help='A line a request, without prompts; "-" is stdout.', show_default=False)
    ] = "",
) -> None:
    """Run a front: clients' requests, in OpenAI's API, go to the rank that serves them best.

    It holds requests while an engine changes its width, and sends those again that an engine lost.
    What it does when, and its limits and figures: docs/front.md.
    """
    try:
        import uvloop

        from controller.router.front import front as fronts
        from controller.router.desk.access_log import AccessLog
        from controller.router.desk.desk import Desk
        from controller.router.desk.settings import read_limits
        from controller.router.scheduling.kernels import Costs
        from controller.router.scheduling.scheduler import Scheduler
        from controller.server.security import Listening
    except ImportError as error:
        raise MissingError("placer front", "controller", error.name) from error

    if bool(controller) == bool(engine) or bool(controller) != bool(pool):
        raise typer.BadParameter("give --controller and --pool, or --engine")
    listening = Listening(listen, tls_cert, tls_key, client_ca, tokens, insecure, "use the model")
    listening.check()
    for fault in listening.credentials.faults(time.time()):
        note(fault)
    key = [] if engine_key is None else [(b"authorization", _bearer(engine_key))]
    limits, clock = read_limits(config), SystemClock()
    chosen = Scheduler([], Costs(0.0, 0.0, 0.0), name=scheduler)
    desk = Desk(chosen, limits, clock, AccessLog(access_log), key, tokens is not None)
    desk.tokenizing = _tokenizing(tokenizer, desk)
    found = fronts.Front(desk, listening, _named(engine or []), _discovery(controller, pool, clock))

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    _open_files(2 * limits.connections)
    gc.freeze()  # what is there now is there to stay
    uvloop.run(_run(found, listen))
    note("the front has ended")


async def _run(found: Any, listen: str) -> None:
    """SIGTERM and Ctrl-C end it, once what is under way is answered; a second one at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    task = asyncio.current_task()

    def told() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told)

    def introduce(port: int) -> None:
        out.print(f"the front listens on {listen.rpartition(':')[0]}:{port}", soft_wrap=True)

    try:
        await found.run(stop, introduce)
    except asyncio.CancelledError:
        note("what was under way is cut")


def _named(engines: list[str]) -> dict[str, Any]:
    from controller.router.pool.doors import Named
    from controller.router.wire.addresses import address

    found: dict[str, Any] = {}
    for number, text in enumerate(engines, start=1):
        for rank, url in enumerate(text.split(",")):
            where = address(url).url
            if where in found:
                raise PlacerError(f"--engine {where} is given twice: name each address once")
            found[where] = Named(f"{ENGINE}-{number}", (rank,) if "," in text else ())
    return found


def _discovery(controller: str, pool: str, clock: Any) -> Any:
    if not controller:
        return None
    from controller.router.pool.discovery import Discovery

    if not is_address(controller):
        raise PlacerError(f"--controller {controller!r} is no address: write it as host:port")
    for fault in Settings.of_environment().credentials.faults(time.time()):
        note(fault)
    return Discovery(controller, pool, clock)


def _tokenizing(tokenizer: str, desk: Any) -> Any:
    if not tokenizer:
        return None
    from controller.router.bodies.tokenizing import EngineTokenizer, LocalTokenizer

    scored = desk.limits.scored_tokens
    if tokenizer == ENGINE:
        return EngineTokenizer(desk.doors, desk.key, scored)
    return LocalTokenizer(Path(tokenizer), scored)


def _bearer(path: Path) -> bytes:
    _, value = Settings(token_file=path).authorization()
    return value.encode()


def _open_files(wanted: int) -> None:
    """As many connections as there may be, if the system lets."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and now < wanted:
        may = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (may, most))
