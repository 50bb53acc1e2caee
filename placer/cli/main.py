"""placer: the command line."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer

from placer import extras
from placer.cli.console import BAD_INPUT, print_json, tell
from placer.errors import PlacerError
from placer.report.figures import NO_ANSWER

_UsageError: Any = typer.BadParameter.__mro__[1]  # Typer has no other name for it

app = typer.Typer(
    help="Place the experts of Mixture-of-Experts models on GPUs, from what their routers did.",
    epilog="Exit codes: 0 done, 1 a fault of placer's own (or nobody reads what it prints), "
    "2 bad usage or input, 3 hold, 4 infeasible, 130 ended by Ctrl-C.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def placer(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and end.")
    ] = False,
) -> None:
    if show_version:
        typer.echo(f"placer {version('moe-placer')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


# Each verb and the module that has it, in the order of the help.
VERBS = {
    "profile": "profile",
    "show": "show",
    "plan": "plan",
    "score": "score",
    "whatif": "whatif",
    "tables": "tables",
    "predict": "predict",
    "advise": "advise",
    "record": "record",
    "apply": "apply",
    "hmm": "hmm",
    "check": "check",
    "serve": "serve",
    "front": "front",
    "picker": "picker",
    "operator": "operator",
    "status": "status",
    "watch": "ledger",
    "history": "ledger",
    "explain": "ledger",
    "page": "page",
    "approve": "operations",
    "reject": "operations",
    "rollback": "operations",
    "scale": "scale",
    "simulate": "simulate",
    "export": "exchange",
    "import": "exchange",
}


def _add(verb: str, module: str) -> None:
    """The verb, or if a library that it needs is not installed, one that says so."""
    try:
        found = import_module(f"placer.cli.{module}")
    except ModuleNotFoundError as error:
        anything = {"ignore_unknown_options": True, "allow_extra_args": True}
        app.command(verb, context_settings=anything, help=_missing(verb, error))(_raising(error))
        return
    name = f"{verb}_plan" if module == "exchange" else verb
    app.command(verb)(getattr(found, name))


def _raising(error: ModuleNotFoundError) -> Callable[[], None]:
    def needs_more() -> None:
        raise error

    return needs_more


def _missing(verb: str, error: ModuleNotFoundError) -> str:
    """What to install. Raises the error itself if that is nothing that placer knows."""
    library = error.name or ""
    extra = extras.of(library)
    if extra is None:
        raise error
    return str(extras.MissingError(f"placer {verb}", extra, library))


# Handshakes that fail are told in our words, once, and not by gRPC besides.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# Who names a verb pays for that one's libraries alone, in time and in memory.
_asked = sys.argv[1] if sys.argv[1:] and sys.argv[1] in VERBS else ""
for _verb, _module in VERBS.items():
    if _asked in ("", _verb):
        _add(_verb, _module)


def run() -> None:
    """Exit codes: see the epilog of the help."""
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        where = error.ctx.command_path if error.ctx else "placer"
        _refuse(f"{error.format_message().rstrip('.')}: see {where} --help")
    except PlacerError as error:
        _refuse(str(error))
    except ModuleNotFoundError as error:
        verb = next((word for word in sys.argv[1:] if word in VERBS), "")
        _refuse(_missing(verb, error))


def _refuse(reason: str) -> NoReturn:
    if "--json" in sys.argv:
        print_json({**NO_ANSWER, "status": "error", "reason": reason})
    tell("error", reason)
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    run()
