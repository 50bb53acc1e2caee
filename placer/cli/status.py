"""placer status: what an operator wants to see first."""

import time
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from placer.cli.client import Json, To, as_dict, controller
from placer.cli.console import out, print_json
from placer.cli.wording import moment, moves, span
from placer.client import ADDRESS, Controller
from placer.report.plain import plain
from placer.v1.fleet_pb2 import StatusRequest
from placer.v1.placement_pb2 import PLAN_STATE_APPROVED, ListRequest
from placer.worker import GONE_S

BAD, GOOD, ATTENTION = "bold red", "green", "yellow"
MODES = {"advisory": "advisory: moves nothing until `placer approve`", "automatic": "automatic"}


def status(
    pool: Annotated[str, typer.Argument(metavar="[POOL]", show_default=False)] = "",
    to: To = ADDRESS,
    as_json: Json = False,
) -> None:
    """Show pools, engines, the newest decision and its reason, and what waits for approval."""
    with controller(to) as found:
        answer = found.ask(found.fleet.Status, StatusRequest(pool=pool))
        if as_json:
            print_json({"status": "done", **as_dict(answer)})
            return
        up = span(answer.uptime_s)
        out.print(f"controller {answer.version} at {to}, up {up}")
        for condition in answer.conditions:
            out.print(Text(f"condition: {plain(condition)}", style=BAD))
        if not answer.pools:
            out.print(
                f"no engine has registered yet: start them with PLACER_AGENT={to}",
                markup=False,
            )  # fmt: skip
        for one in answer.pools:
            out.print()
            _show(found, one)


def _show(found: Controller, pool: Any) -> None:
    title = Text(plain(pool.name), style="bold")
    title.append(f"  {plain(pool.model)} on {_widths(pool)}  ", "")
    title.append(MODES.get(pool.mode, pool.mode), ATTENTION if pool.mode == "advisory" else "")
    out.print(title)
    now_s = time.time()
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    traffic = f"{pool.tokens:,.0f} tokens in the last {span(pool.window_s)}"
    if pool.balancedness:
        traffic += f", balancedness {pool.balancedness:.3f}"
    facts.add_row("  traffic", traffic)
    if pool.step_s:
        busy = f"engines are busy {pool.busy:.0%} of the time"
        facts.add_row("  steps", f"{pool.step_s * 1e3:.3g} ms each, {busy}")
    if pool.homing.reason:
        facts.add_row("  homes", plain(pool.homing.reason))
    if pool.outcome:
        told = Text(pool.outcome, style="bold").append(
            f", {span(now_s - pool.decided_s)} ago: {plain(pool.reason)}", ""
        )
        facts.add_row("  decision", told)
    else:
        facts.add_row("  decision", "none yet")
    for width in pool.widths[1:]:  # the first is that of what stands above
        facts.add_row(f"  on {width.ranks} ranks", _decision(width))
    if pool.applied_plan:
        age = f"{span(now_s - pool.applied_s)} ago ({moment(pool.applied_s)} UTC)"
        facts.add_row("  applied", f"{pool.applied_plan}, {age}")
    else:
        facts.add_row("  applied", "no plan")
    if pool.proposed_plan:
        facts.add_row("  waits", _waiting(found, pool))
    if pool.HasField("operation"):
        at = pool.operation
        what = at.kind + (f" of {at.plan_id}" if at.plan_id else "")
        if at.HasField("resize"):
            what += f" to {at.resize.ranks} ranks"
        words = f"{at.id}, {what} for {span(now_s - at.begun_s)}: {at.progress}"
        facts.add_row("  runs", Text(plain(words), style=ATTENTION))
    out.print(facts)
    out.print(_engines(pool.engines))


def _widths(pool: Any) -> str:
    """Ranks and slots, of most engines first."""
    widths = [(one.ranks, one.slots) for one in pool.widths] or [(pool.ranks, pool.slots)]
    return " and ".join(f"{ranks} ranks, {slots} slots a layer" for ranks, slots in widths)


def _decision(width: Any) -> Text:
    traffic = f"{width.tokens:,.0f} tokens"
    plans = [f"{width.applied_plan} applied"] if width.applied_plan else []
    plans += [f"{width.proposed_plan} waits"] if width.proposed_plan else []
    told = Text(width.outcome or "no decision yet", style="bold")
    reason = f": {plain(width.reason)}" if width.reason else ""
    return told.append(f"{reason} ({', '.join([traffic, *plans])})", "")


def _waiting(found: Controller, pool: Any) -> Text:
    """The plan that is proposed, or approved and not begun."""
    id, option = pool.proposed_plan, found.option
    plans = found.ask(found.placement.List, ListRequest(pool=pool.name)).plans
    known = next((plan for plan in plans if plan.id == id), None)
    told = Text(id, style="bold")
    if known is not None:
        told.append(f", {moves(known)}", "")
    if known is not None and known.state == PLAN_STATE_APPROVED:
        return told.append(f"\napproved, begins in its turn; at once: placer approve {id} --now"
                           f"{option}", "")  # fmt: skip
    return told.append(f"\nplacer approve {id}{option}", ATTENTION)


def _engines(engines: Any) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("  engine", overflow="fold")
    for name in ("ranks", "workers", "last seen", "epoch", "tokens", "dropped"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("condition", overflow="fold")
    for engine in engines:
        is_gone = engine.silent_s > GONE_S
        conditions = [plain(text) for text in dict.fromkeys(engine.conditions)]
        table.add_row(
            Text(f"  {plain(engine.name)}"),
            str(engine.ranks or "-"),
            str(engine.workers),
            Text(f"{span(engine.silent_s)} ago", style=BAD if is_gone else ""),
            str(engine.epoch or "-"),
            f"{engine.tokens:,}",
            Text(f"{engine.dropped:,}", style=BAD if engine.dropped else ""),
            Text("; ".join(conditions) or "-", style=BAD if conditions else ""),
        )
    return table
