"""placer: the command line."""

import sys

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
from placer.cli.console import BAD_INPUT, err, print_json
from placer.errors import PlacerError
from placer.report.figures import NO_ANSWER

app = typer.Typer(
    help="Place the experts of Mixture-of-Experts models on GPUs, from what their routers did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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
    """Exit codes: 0 done, 2 bad usage or input, 3 hold, 4 infeasible."""
    try:
        app()
    except PlacerError as error:
        if "--json" in sys.argv:
            print_json({**NO_ANSWER, "status": "error", "reason": str(error)})
        err.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    run()
