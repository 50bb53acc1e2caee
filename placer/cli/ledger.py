"""placer watch, history and explain: what a controller writes down."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from placer.cli.client import Json, To, as_dict, controller
from placer.cli.console import note, out, print_json
from placer.cli.wording import moment, reason, state
from placer.client import ADDRESS
from placer.report.plain import plain
from placer.v1.fleet_pb2 import ExplainRequest, HistoryRequest, StatusRequest
from placer.v1.placement_pb2 import WatchRequest

Pool = Annotated[str, typer.Argument(metavar="[POOL]", help="All, if left out.")]


def watch(pool: Pool = "", to: To = ADDRESS) -> None:
    """Show every change as it comes, one a line, until Ctrl-C."""
    with controller(to) as found:
        found.ask(found.fleet.Status, StatusRequest(pool=pool))  # knows such a pool, or says so
        note(f"what changes at {to}, times in UTC; Ctrl-C ends this")
        try:
            for answer in found.listen(found.placement.Watch, WatchRequest(pool=pool)):
                record = answer.record
                out.print(
                    f"{moment(record.at_s)}  {record.kind:15}  {plain(record.id)}  "
                    f"{state(record)}: {reason(record)}",
                    soft_wrap=True,
                )  # fmt: skip
        except KeyboardInterrupt:
            return


def history(
    pool: Pool = "",
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1000)] = 50,
    to: To = ADDRESS,
    as_json: Json = False,
) -> None:
    """Show plans, operations, decisions, acknowledgements and readings, the newest first."""
    with controller(to) as found:
        request = HistoryRequest(pool=pool, limit=limit)
        records = found.ask(found.ledger.History, request).records
    if as_json:
        print_json({"status": "done", "records": [as_dict(record) for record in records]})
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("UTC", no_wrap=True)
    shows_pools = not pool and len({record.pool for record in records}) > 1
    if shows_pools:
        table.add_column("pool", overflow="fold")
    table.add_column("id", overflow="fold")
    table.add_column("state")
    table.add_column("reason", overflow="fold")
    for record in records:
        where = [Text(plain(record.pool))] if shows_pools else []
        told = [Text(plain(text)) for text in (record.id, state(record), reason(record))]
        table.add_row(moment(record.at_s), *where, *told)
    if records:
        out.print(table)
    else:
        note("nothing is written down yet")


def explain(
    id: Annotated[str, typer.Argument(metavar="ID", help="plan-1, op-1, or a decision's.")],
    to: To = ADDRESS,
    as_json: Json = False,
) -> None:
    """Tell all that is known of a plan, an operation or a decision."""
    with controller(to) as found:
        answer = found.ask(found.ledger.Explain, ExplainRequest(id=id))
    if as_json:
        print_json({"status": "done", **as_dict(answer)})
        return
    for line in answer.lines:
        when, two, told = line.partition("  ")
        text = f"{when}  {plain(told)}" if two else plain(line)
        out.print(text, soft_wrap=True)
