"""placer front: the data plane, until Ctrl-C."""

import gc
import logging
import time
from pathlib import Path
from typing import Annotated

import typer

from placer.cli import routing
from placer.cli.console import note
from placer.cli.routing import (
    CertificateOption,
    ClientCaOption,
    ControllerOption,
    EngineKeyOption,
    EngineOption,
    InsecureOption,
    KeyOption,
    ListenOption,
    PoolOption,
    SchedulerOption,
    TokenizerOption,
)
from placer.clock import SystemClock
from placer.extras import MissingError

ADDRESS = "127.0.0.1:8080"


def front(
    controller: ControllerOption = "",
    pool: PoolOption = "",
    engine: EngineOption = None,
    listen: ListenOption = ADDRESS,
    scheduler: SchedulerOption = "seconds",
    tokenizer: TokenizerOption = "",
    config: Annotated[
        Path | None, typer.Option(help="YAML: its limits, see docs/front.md.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="YAML: the API keys of clients, as client: [...].")
    ] = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    client_ca: ClientCaOption = None,
    insecure: InsecureOption = False,
    engine_key: EngineKeyOption = None,
    access_log: Annotated[
        str,
        typer.Option(help='A line a request, without prompts; "-" is stdout.', show_default=False),
    ] = "",
) -> None:
    """Run a front: clients' requests, in OpenAI's API, go to the rank that serves them best.

    It holds requests while an engine changes its width, and sends those again that an engine lost.
    What it does when, and its limits and figures: docs/front.md.
    """
    try:
        import uvloop

        from controller.router.front import front as fronts
        from controller.router.scheduling.scheduler import Scheduler
        from controller.router.shared.access_log import AccessLog
        from controller.router.shared.request_router import RequestRouter
        from controller.router.shared.settings import read_limits
        from controller.server.security import Listening
        from placer.cost.requests import Costs
    except ImportError as error:
        raise MissingError("placer front", "controller", error.name) from error

    routing.check_engines(controller, pool, engine)
    listening = Listening(listen, tls_cert, tls_key, client_ca, tokens, insecure, "use the model")
    listening.check()
    for fault in listening.credentials.faults(time.time()):
        note(fault)
    limits, clock = read_limits(config), SystemClock()
    chosen = Scheduler([], Costs(0.0, 0.0, 0.0), name=scheduler)
    key = routing.bearer(engine_key)
    router = RequestRouter(chosen, limits, clock, AccessLog(access_log), key, tokens is not None)
    router.tokenizing = routing.tokenizing(tokenizer, router)
    found = fronts.Front(
        router,
        listening,
        routing.listed(engine or []),
        routing.discovery(controller, pool, clock, tokenizer),
    )

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    routing.open_files(2 * limits.connections)
    gc.freeze()  # what is there now is there to stay
    uvloop.run(routing.run(found, "front", listen))
    note("the front has ended")
