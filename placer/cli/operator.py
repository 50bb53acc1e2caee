"""placer operator: fleets as Kubernetes objects, until Ctrl-C."""

import asyncio
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from placer.channel import Settings
from placer.cli.console import note
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.extras import MissingError

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LEASE = "placer-operator"


def operator(
    controller: Annotated[
        str, typer.Option(envvar="PLACER_CONTROLLER", help="The controller's host:port.")
    ],
    namespace: Annotated[
        list[str] | None,
        typer.Option(help="Whose fleets it looks after; again for each. Without it: all."),
    ] = None,
    token: Annotated[
        Path | None,
        typer.Option(help="A file with an operator's token of the controller; PLACER_TOKEN_FILE."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Whom to trust as the controller, in PEM; PLACER_TLS_CA.")
    ] = None,
    lease: Annotated[str, typer.Option(help="Of several operators one is active, by it.")] = LEASE,
    metrics: Annotated[
        int, typer.Option(help="Port of /healthz, /readyz and /metrics.", show_default=False)
    ] = 0,
) -> None:
    """Run the Kubernetes operator: a controller looks after MoEFleets, as docs/kubernetes.md tells.

    The cluster is KUBECONFIG's, or the one whose pod this is.
    """
    try:
        from controller.kube.cluster.api import Api
        from controller.kube.operator import Operator, Options
    except ImportError as error:
        raise MissingError("placer operator", "operator", error.name) from error

    host, _, port = controller.rpartition(":")
    if not host or not port.isdigit():
        raise PlacerError(f"--controller {controller!r} is no address: write it as host:port")
    settings = Settings.of_environment()
    if token is not None:
        settings = replace(settings, token="", token_file=token)
    if ca is not None:
        settings = replace(settings, ca=ca)
    settings.check(controller)
    mine = (namespace or ["default"])[0]
    if pod := os.environ.get("PLACER_NAMESPACE") or _namespace():
        mine = pod
    options = Options(controller, namespace or [], lease, mine, metrics)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")

    async def run() -> None:
        clock = SystemClock()
        found = Operator(await Api.open(), options, settings, clock)
        task: Any = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await found.run()
        except asyncio.CancelledError:
            note("the operator has ended")

    try:
        asyncio.run(run())
    except OSError as error:
        raise PlacerError(f"--metrics {metrics}: {error.strerror}: choose another") from error


def _namespace() -> str:
    """Of the pod that this runs in; empty outside of one."""
    try:
        return NAMESPACE.read_text().strip()
    except OSError:
        return ""
