"""placer scale: another width for a pool's engines, while they serve."""

import uuid
from typing import Annotated, Any

import typer
from rich.filesize import decimal
from rich.table import Table

from placer.cli.client import PLANNING_S, Json, Reason, To, as_dict, controller
from placer.cli.console import note, out, print_json
from placer.cli.operations import end, wait_for
from placer.client import ADDRESS
from placer.v1.fleet_pb2 import ScaleToRequest

# Steps as people know them: what is predicted of them, and the states that are measured.
STEPS = {
    "attach": (("attach",), ("staging", "agreeing")),
    "transfer": (("disk", "transfer"), ("transferring",)),
    "switch": (("switch",), ("switching",)),
    "release and verify": ((), ("releasing", "verifying")),
}


def scale(
    pool: Annotated[str, typer.Argument(metavar="POOL")],
    ranks: Annotated[int, typer.Option(help="That each of its engines is to have.", min=1)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what it would cost, and do nothing.")
    ] = False,
    reason: Reason = "",
    to: To = ADDRESS,
    as_json: Json = False,
) -> None:
    """Give the engines of POOL another number of ranks, and wait for the end.

    Ends with 0 once they have it, with 3 if it was taken back or is refused.
    """
    with controller(to) as found:
        request = ScaleToRequest(
            pool=pool,
            ranks=ranks,
            reason=reason,
            idempotency_key=str(uuid.uuid4()),
            dry_run=dry_run,
        )
        answer = found.ask(found.fleet.ScaleTo, request, PLANNING_S)
        if dry_run:
            if as_json:
                print_json({"status": "planned", **as_dict(answer.resize)})
            else:
                out.print(_costs(answer.resize), soft_wrap=True)
                out.print(_steps(answer.resize, None))
            return
        operation = answer.operation
        if not as_json and operation.HasField("resize") and operation.resize.seconds:
            out.print(_costs(operation.resize), soft_wrap=True)
        ended = wait_for(found, operation)
        if not as_json and ended.seconds:
            out.print(_steps(ended.resize, ended))
        end(found, ended, "succeeded", as_json)
        if ended.phase != operation.phase:
            note(f"take it back: placer rollback {pool}{found.option}")


def _costs(resize: Any) -> str:
    """In a sentence or two."""
    slots = [
        f"{count:,} {what}"
        for what, count in (
            ("stay", resize.kept),
            ("appear in another slot", resize.remapped),
            ("are copied", resize.copied),
            ("are read from the checkpoint", resize.loaded),
        )
        if count
    ]
    return (
        f"{resize.ranks_before} -> {resize.ranks} ranks, each engine: of its slots "
        f"{', '.join(slots)}\n"
        f"{decimal(resize.p2p_bytes)} between devices, {decimal(resize.network_bytes)} of it over "
        f"the network; {decimal(resize.disk_bytes)} from disk; at the switch the fullest device "
        f"holds {decimal(resize.peak_bytes)} of weights"
    )


def _steps(resize: Any, operation: Any) -> Table:
    table = Table()
    columns = ("step", "predicted", *(("measured", "copied") if operation is not None else ()))
    for name in columns:
        table.add_column(name, justify="left" if name == "step" else "right")
    for step, (predicted, measured) in STEPS.items():
        cells = [step, _ms(sum(resize.seconds[one] for one in predicted)) if predicted else "-"]
        if operation is not None:
            cells.append(_ms(sum(operation.seconds[one] for one in measured)))
            copied = sum(operation.bytes[one] for one in measured)
            cells.append(decimal(copied) if copied else "-")
        table.add_row(*cells)
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
