"""placer serve: the controller, until Ctrl-C."""

import platform
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from placer import parallel
from placer.cli.console import note, out, progress
from placer.client import ADDRESS
from placer.errors import PlacerError
from placer.extras import MissingError

LOCAL = "local"
WAIT_S = 1.0  # how often it is looked whether the ledger is free
LOOK_S = 5.0  # how often it is asked whether the controller is well
_EVERYWHERE = ("0.0.0.0", "[::]", "[::0]")


class Host(StrEnum):
    """Where the controller runs."""

    RAY = "ray"
    PROCESS = "process"


def serve(
    listen: Annotated[str, typer.Option(help="host:port; port 0 chooses one.")] = ADDRESS,
    ledger: Annotated[
        Path, typer.Option(help="Where it writes down what it does, and goes on from.")
    ] = Path("placer.db"),
    config: Annotated[
        Path | None, typer.Option(help="YAML, see docs/controller.md; advisory without it.")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="YAML: who may connect.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Its certificate, in PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="That certificate's key.")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="Whose certificates clients must show (mutual TLS).")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen for other hosts without TLS or tokens.")
    ] = False,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby",
            help="While another controller has the ledger, wait until it ends or falls silent.",
        ),
    ] = False,
    metrics: Annotated[
        str, typer.Option(help="host:port for Prometheus.", show_default=False)
    ] = "",
    metrics_detail: Annotated[
        bool, typer.Option("--metrics-detail", help="Also the load of every layer and rank.")
    ] = False,
    page: Annotated[
        str, typer.Option(help="host:port where a browser may watch.", show_default=False)
    ] = "",
    host: Annotated[
        Host, typer.Option(help="A Ray cluster, or this process alone: docs/controller.md.")
    ] = Host.RAY,
    ray: Annotated[
        str, typer.Option(help='Address of a Ray cluster; "local" starts one here.')
    ] = LOCAL,
) -> None:
    """Run the controller: it watches the engines' traffic, plans, and applies what is approved.

    By default it is advisory: it proposes, and moves nothing until `placer approve`.
    """
    try:
        from controller.assemble import Setup
        from controller.config import read_config
        from controller.ledger.ledger import Ledger
        from controller.server.security import Listening, Tokens

        hosted: Any = import_module(f"controller.hosts.{host}")
    except ImportError as error:
        raise MissingError("placer serve", "controller", error.name) from error

    if host is not Host.RAY and ray != LOCAL:
        raise PlacerError(f"--ray {ray} is a Ray cluster: give --host ray, or leave it out")
    certificate, key, ca = (_whole(path) for path in (tls_cert, tls_key, client_ca))
    listening = Listening(listen, certificate, key, ca, _whole(tokens), insecure)
    settings = read_config(config)
    # All that can be wrong, before Ray takes its seconds to start.
    listening.check()
    for fault in listening.credentials.faults(time.time()):
        note(fault)
    if tokens is not None:
        Tokens(tokens)
    if metrics:
        _check_free(metrics, "--metrics")
    told, handle = threading.Event(), None
    _listen_for_signals(told)
    if page:
        _check_free(page, "--page")
    _have(lambda: Ledger(ledger).close(), told, standby)
    _check_free(listen, "--listen")

    setup = Setup(settings, listening, ledger.absolute(), metrics, metrics_detail, page)
    if page:
        setup.page_listening.check()
    try:
        if told.is_set():
            return
        with progress("starting"):
            if host is Host.RAY:
                parallel.connect(ray, log_to_driver=True)
                _listen_for_signals(told)  # Ray has put its own in their place
            handle, port = hosted.launch(setup)
        _introduce(setup, f"{listen.rpartition(':')[0]}:{port}")
        _stay(told, lambda: hosted.look(handle), port)
    finally:
        hosted.end(handle)
    note("the controller has ended")


def _have(ledger: Callable[[], None], told: threading.Event, standby: bool) -> None:
    """Until nobody else has the ledger, if that is waited for, or a signal."""
    from controller.ledger.ledger import InUse

    waits = False
    while not told.is_set():
        try:
            ledger()
        except InUse as error:
            if not standby:
                raise
            if not waits:
                note(f"{str(error).partition(': ')[0]}: waiting until it ends")
            waits = True
        else:
            return
        told.wait(WAIT_S)


def _introduce(setup: Any, address: str) -> None:
    config, listening = setup.config, setup.listening
    host, _, port = address.rpartition(":")
    attach = f"{platform.node()}:{port}" if host in _EVERYWHERE else address
    lines = [f"the controller listens on {address}", f"its ledger is {setup.ledger}"]
    if setup.metrics:
        lines.append(f"metrics: http://{setup.metrics}/metrics")
    if setup.page:
        lines.append(f"page: http{'s' if listening.certificate else ''}://{setup.page}/")
    lines += [f"{pool}: {_mode(policy.mode)}" for pool, policy in config.pools.items()]
    rest = "all other pools" if config.pools else "all pools"
    lines.append(f"{rest}: {_mode(config.default.mode)}")
    lines.append(f"attach engines: export PLACER_AGENT={attach}")
    if listening.certificate is not None:
        lines.append("                export PLACER_TLS_CA=... (the authority of its certificate)")
    if listening.client_ca is not None:
        lines.append("                export PLACER_TLS_CERT=... PLACER_TLS_KEY=... (their own)")
    if listening.tokens is not None:
        lines.append("                export PLACER_TOKEN_FILE=... (with an agent's token)")
    to = "" if attach == ADDRESS else f" --to {attach}"
    lines.append(f"look: placer status{to}")
    for line in lines:
        out.print(line, soft_wrap=True)


def _mode(mode: str) -> str:
    if mode == "advisory":
        return "advisory: proposes and moves nothing until `placer approve`"
    return f"{mode}: moves experts by itself"


def _stay(told: threading.Event, look: Any, port: int) -> None:
    """Until a signal. A controller that dies is started again by Ray; one that cannot start, or
    dies in this process, is the end."""
    was_there = True
    while not told.wait(LOOK_S):
        found = look()
        if isinstance(found, PlacerError):
            raise found
        if found is None and was_there:
            note("the controller does not answer; if it died, Ray starts it again from its ledger")
        elif found is not None and not was_there:
            moved = f", on port {found} now" if found != port else ""
            note(f"the controller answers again{moved}")
        was_there = found is not None


def _listen_for_signals(told: threading.Event) -> None:
    """Ctrl-C and SIGTERM say when; a second one does not wait for what is under way."""

    def tell(number: int, _: object) -> None:
        if told.is_set():
            signal.default_int_handler(number, None)
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, tell)


def _whole(path: Path | None) -> Path | None:
    """The controller's process may stand in another folder."""
    return None if path is None else path.absolute()


def _check_free(address: str, option: str) -> None:
    found = re.fullmatch(r"(\[[^\]]+\]|[^\s:/]+):(\d{1,5})", address)
    if found is None or int(found[2]) > 65535:
        raise PlacerError(f"{option} {address!r}: write it as host:port")
    try:
        family, kind, *_, where = socket.getaddrinfo(
            found[1].strip("[]"), int(found[2]), type=socket.SOCK_STREAM
        )[0]
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(where)
    except OSError as error:
        raise PlacerError(
            f"cannot listen on {option} {address} ({error}): choose another port, or this host's"
            " address"
        ) from error
