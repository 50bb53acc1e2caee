"""What `placer front` and `placer picker` share: where engines are, and how requests get there."""

import asyncio
import resource
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from placer.channel import Settings
from placer.cli.console import note, out
from placer.client import is_address
from placer.errors import PlacerError
from placer.files.vocabularies import vocabulary_of

ENGINE = "engine"

ControllerOption = Annotated[
    str, typer.Option(help="A controller's host:port, which knows the engines.")
]
PoolOption = Annotated[str, typer.Option(help="With --controller: whose engines.")]
EngineOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL[,URL...]",
        help="Without a controller: an engine's address; of one whose ranks have ports of their "
        "own, all of them. Again for each engine.",
    ),
]
ListenOption = Annotated[str, typer.Option(help="host:port; port 0 chooses one.")]
SchedulerOption = Annotated[
    str, typer.Option(help="seconds, least_loaded or another: docs/prescheduling.md.")
]
TokenizerOption = Annotated[
    str,
    typer.Option(
        help='The model\'s tokenizer.json, for prompts that are text; "engine" asks an engine.',
        show_default=False,
    ),
]
CertificateOption = Annotated[Path | None, typer.Option(help="Its certificate, in PEM.")]
KeyOption = Annotated[Path | None, typer.Option(help="That certificate's key.")]
ClientCaOption = Annotated[
    Path | None, typer.Option(help="Whose certificates clients must show (mutual TLS).")
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Listen for other hosts without TLS or keys.")
]
EngineKeyOption = Annotated[
    Path | None, typer.Option(help="A file with the API key that engines ask for.")
]


def check_engines(controller: str, pool: str, engine: list[str] | None) -> None:
    if bool(controller) == bool(engine) or bool(controller) != bool(pool):
        raise typer.BadParameter("give --controller and --pool, or --engine")


async def run(found: Any, what: str, listen: str) -> None:
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
        out.print(f"the {what} listens on {listen.rpartition(':')[0]}:{port}", soft_wrap=True)

    try:
        await found.run(stop, introduce)
    except asyncio.CancelledError:
        note("what was under way is cut")


def listed(engines: list[str]) -> dict[str, Any]:
    from controller.router.pool.endpoints import Listed
    from controller.router.wire.addresses import address

    found: dict[str, Any] = {}
    for number, text in enumerate(engines, start=1):
        for rank, url in enumerate(text.split(",")):
            where = address(url).url
            if where in found:
                raise PlacerError(f"--engine {where} is given twice: name each address once")
            found[where] = Listed(f"{ENGINE}-{number}", (rank,) if "," in text else ())
    return found


def discovery(controller: str, pool: str, clock: Any, tokenizer: str) -> Any:
    if not controller:
        return None
    from controller.router.pool.discovery import Discovery

    if not is_address(controller):
        raise PlacerError(f"--controller {controller!r} is no address: write it as host:port")
    for fault in Settings.of_environment().credentials.faults(time.time()):
        note(fault)
    own = Path(tokenizer) if tokenizer not in ("", ENGINE) else None
    return Discovery(controller, pool, clock, vocabulary_of(own))


def tokenizing(tokenizer: str, router: Any) -> Any:
    if not tokenizer:
        return None
    from controller.router.bodies.tokenizing import EngineTokenizer, LocalTokenizer

    scored = router.limits.scored_tokens
    if tokenizer == ENGINE:
        return EngineTokenizer(router.endpoints, router.key, scored)
    return LocalTokenizer(Path(tokenizer), scored)


def bearer(path: Path | None) -> list[tuple[bytes, bytes]]:
    """The header that opens engines."""
    if path is None:
        return []
    _, value = Settings(token_file=path).authorization()
    return [(b"authorization", value.encode())]


def open_files(wanted: int) -> None:
    """As many connections as there may be, if the system lets."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if now != resource.RLIM_INFINITY and now < wanted:
        may = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (may, most))
