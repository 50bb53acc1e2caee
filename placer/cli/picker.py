"""placer picker: decisions for a gateway that is the data plane, until Ctrl-C."""

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

ADDRESS = "127.0.0.1:9002"


def picker(
    controller: ControllerOption = "",
    pool: PoolOption = "",
    engine: EngineOption = None,
    listen: ListenOption = ADDRESS,
    only_rank: Annotated[
        bool,
        typer.Option(
            "--only-rank", help="Set X-data-parallel-rank alone: the gateway chooses the endpoint."
        ),
    ] = False,
    scheduler: SchedulerOption = "seconds",
    tokenizer: TokenizerOption = "",
    config: Annotated[
        Path | None, typer.Option(help="YAML: its limits, see docs/picker.md.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="YAML: the tokens of gateways, as client: [...].")
    ] = None,
    tls_cert: CertificateOption = None,
    tls_key: KeyOption = None,
    client_ca: ClientCaOption = None,
    insecure: InsecureOption = False,
    engine_key: EngineKeyOption = None,
    metrics: Annotated[
        str, typer.Option(help="host:port for Prometheus.", show_default=False)
    ] = "",
) -> None:
    """Run an endpoint picker: a gateway asks it, by Envoy's ext_proc, which rank serves a request.

    It speaks the protocol of the Gateway API Inference Extension. How to run it behind Envoy, and
    its limits: docs/picker.md.
    """
    try:
        import uvloop

        from controller.router.picker import picker as pickers
        from controller.router.scheduling.scheduler import Scheduler
        from controller.router.shared.access_log import AccessLog
        from controller.router.shared.request_router import RequestRouter
        from controller.router.shared.settings import read_limits
        from controller.server.security import Listening
        from placer.cost.requests import Costs
    except ImportError as error:
        raise MissingError("placer picker", "controller", error.name) from error

    routing.check_engines(controller, pool, engine)
    listening = Listening(
        listen, tls_cert, tls_key, client_ca, tokens, insecure, "read which engines there are"
    )
    listening.check()
    for fault in listening.credentials.faults(time.time()):
        note(fault)
    limits, clock = read_limits(config), SystemClock()
    chosen = Scheduler([], Costs(0.0, 0.0, 0.0), name=scheduler)
    router = RequestRouter(chosen, limits, clock, AccessLog(""), routing.bearer(engine_key), False)
    router.tokenizing = routing.tokenizing(tokenizer, router)
    found = pickers.Picker(
        router, listening, routing.listed(engine or []),
        routing.discovery(controller, pool, clock, tokenizer),
        only_rank, metrics,
    )  # fmt: skip

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    gc.freeze()  # what is there now is there to stay
    uvloop.run(routing.run(found, "picker", listen))
    note("the picker has ended")
