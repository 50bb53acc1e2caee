"""placer: the command line."""

import sys
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer

from placer.cli import (
    apply,
    check,
    exchange,
    ledger,
    operations,
    plan,
    profile,
    record,
    score,
    serve,
    show,
    status,
    whatif,
)
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


app.command()(profile.profile)
app.command()(show.show)
app.command()(plan.plan)
app.command()(score.score)
app.command()(whatif.whatif)
app.command()(record.record)
app.command()(apply.apply)
app.command()(check.check)
app.command()(serve.serve)
app.command()(status.status)
app.command()(ledger.watch)
app.command()(ledger.history)
app.command()(ledger.explain)
app.command()(operations.approve)
app.command()(operations.rollback)
app.command("export")(exchange.export_plan)
app.command("import")(exchange.import_plan)


def run() -> None:
    """Exit codes: see the epilog of the help."""
    try:
        sys.exit(app(standalone_mode=False))
    except _UsageError as error:
        where = error.ctx.command_path if error.ctx else "placer"
        _refuse(f"{error.format_message().rstrip('.')}: see {where} --help")
    except PlacerError as error:
        _refuse(str(error))


def _refuse(reason: str) -> NoReturn:
    if "--json" in sys.argv:
        print_json({**NO_ANSWER, "status": "error", "reason": reason})
    tell("error", reason)
    sys.exit(BAD_INPUT)


if __name__ == "__main__":
    run()
