"""The page of a ledger's file, which is only read."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from controller.changes.plans import PlanState
from controller.fleet import snapshots
from controller.fleet.pools import Pool
from controller.fleet.workers import Fleet
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.page.records import NOT_KEPT, Told, begins
from placer.clock import SystemClock
from placer.report.page import FANOUT, IN_TIME, WAITING, Page, PoolRow, Run, newest

FORGOTTEN_S = 300.0  # of windows, whose traffic is not shown


def of_ledgers(paths: Sequence[Path]) -> Page:
    """Several are compared. Raises LedgerError."""
    runs = []
    for path in paths:
        with closing(Ledger(path, FORMS, reads_only=True)) as ledger:
            runs.append(run_of(ledger, path.name, None if len(paths) > 1 else ""))
    return Page(", ".join(path.name for path in paths), "ledger", runs)


def run_of(ledger: Ledger, name: str, option: str | None) -> Run:
    """option: as Told has it"""
    told = Told(ledger, begins(ledger), option)
    pools = _pools(ledger)
    names = {one.pool for kind in ("decision", "plan") for one in ledger.newest(kind)} | set(pools)
    rows = [_row(ledger, one, pools.get(one)) for one in sorted(names - {""})]
    events, notes = newest(told.events())
    notes += [
        f"{one.kind} {one.id} cannot be read: {one.why}: left out." for one in ledger.left_out()
    ]
    return Run(
        name,
        told.begins_s,
        rows,
        {row.name: told.lines(row.name, row.gpus) for row in rows},
        events,
        told.plans(),
        dict.fromkeys((FANOUT, WAITING, IN_TIME), NOT_KEPT),
        notes=notes,
    )


def _pools(ledger: Ledger) -> dict[str, Pool]:
    """As its controller's last snapshots have them."""
    clock = SystemClock()
    fleet = Fleet(lambda pool: FORGOTTEN_S, clock)
    snapshots.recall(WatchedLedger(ledger, clock), fleet, lambda pool: FORGOTTEN_S)
    return dict(fleet.pools)


def _row(ledger: Ledger, name: str, pool: Pool | None) -> PoolRow:
    decided = next(iter(ledger.newest("decision", 1, name)), None)
    told = [one.value.balancedness for one in ledger.newest("decision", 20, name)]
    ids: dict[PlanState, str] = {}
    for plan in ledger.newest("plan", 50, name):
        ids.setdefault(plan.value.state, plan.id)
    groups = list(pool.groups.values()) if pool is not None else []
    running = next(iter(ledger.newest("operation", 1, name, final=False)), None)
    return PoolRow(
        name,
        model=pool.model.name if pool is not None else "",
        engines=len(pool.engines) if pool is not None else 0,
        gpus=sum(group.ranks * len(group.engines) for group in groups),
        width=" and ".join(str(group.ranks) for group in groups),
        slots=groups[0].slots if groups else 0,
        balancedness=next((one for one in told if one is not None), None),
        outcome=decided.value.outcome if decided else "",
        reason=decided.reason if decided else "",
        applied=ids.get(PlanState.APPLIED, ""),
        waits=ids.get(PlanState.PROPOSED, "") or ids.get(PlanState.APPROVED, ""),
        running=f"{running.id}: {running.value.progress}" if running else "",
    )
