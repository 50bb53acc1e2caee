"""The page of a controller that runs. Nothing is computed unless somebody asks."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from controller.loop import Loop
from controller.page.recorder import Recorder
from controller.page.records import Told, begins
from controller.server.fleet_state import FleetState
from controller.server.strangers import Spacing
from placer.report.page import (
    BALANCE,
    FANOUT,
    IN_TIME,
    RUNNING,
    WAITING,
    Line,
    Page,
    PoolRow,
    Run,
    newest,
)

UNREAD = (
    "the pool's size does not follow its load (autoscale), so nobody reads its engines' metrics"
)
UNCOUNTED = "the traffic's co-activations are not recorded, or there is too little traffic"
NOT_YET = "nothing was seen yet"


class Live:
    """The page of a loop that runs: of all pools what `placer status` tells, of one the rest."""

    def __init__(self, loop: Loop, option: str) -> None:
        """option: that commands need to find the controller"""
        self._loop, self._option = loop, option
        self._recorder = Recorder(loop)
        self._state = FleetState(loop, Spacing(loop.ledger.clock))
        self._beside = ThreadPoolExecutor(1, "page")

    async def page(self, pool: str = "") -> Page:
        """pool: empty for one that waits for somebody, or the first. Raises UnknownError."""
        status = await self._state.status()
        rows = [_row(one) for one in status.pools]
        if pool:
            self._loop.fleet.pool(pool)
        elif rows:
            pool = next((row.name for row in rows if row.waits), rows[0].name)
        running = asyncio.get_running_loop()
        run = await running.run_in_executor(self._beside, self._told, pool, rows)
        notes = [*(f"Condition: {one}." for one in status.conditions), *run.notes]
        whole = Run(
            run.name, run.begins_s, rows, run.lines, run.events, run.plans, run.missing, notes=notes
        )
        return Page(f"controller {status.version}", "controller", [whole], of_pool=pool)

    def _told(self, pool: str, rows: list[PoolRow]) -> Run:
        """What the ledger has and the recorder; on a thread, since it may be much."""
        records = self._loop.ledger.records
        since_s = begins(records, pool) or self._loop.ledger.clock.now()
        told = Told(records, since_s, self._option)
        gpus = next((row.gpus for row in rows if row.name == pool), 0)
        lines = joined(told.lines(pool, gpus), self._recorder.lines(pool, since_s))
        events, notes = newest(told.events(pool))
        why = {BALANCE: NOT_YET, FANOUT: UNCOUNTED}
        why |= dict.fromkeys((WAITING, RUNNING, IN_TIME), UNREAD)
        missing = {metric: reason for metric, reason in why.items() if metric not in lines}
        name = "this controller"
        return Run(
            name, since_s, rows, {pool: lines}, events, told.plans(pool), missing, notes=notes
        )


def joined(kept: Any, seen: Any) -> dict[str, Line]:
    """What was written down, up to where it was seen."""
    found = dict(seen)
    for metric, one in kept.items():
        new = found.get(metric, Line())
        until_s = new.at_s[0] if new.at_s else float("inf")
        before = [
            (at, value) for at, value in zip(one.at_s, one.values, strict=True) if at < until_s
        ]
        found[metric] = Line(
            [*(at for at, _ in before), *new.at_s], [*(value for _, value in before), *new.values]
        )
    return found


def _row(message: Any) -> PoolRow:
    """Of a Pool message."""
    widths, engines = message.widths, message.engines
    conditions = [text for engine in engines for text in engine.conditions]
    running = message.operation
    return PoolRow(
        message.name,
        model=message.model,
        mode=message.mode,
        engines=len(engines),
        gpus=sum(one.ranks * one.engines for one in widths),
        width=" and ".join(str(one.ranks) for one in widths),
        slots=message.slots,
        balancedness=message.balancedness or None,
        outcome=message.outcome,
        reason=message.reason,
        applied=message.applied_plan,
        waits=message.proposed_plan,
        running=f"{running.id}: {running.progress}" if message.HasField("operation") else "",
        homes=message.homing.reason,
        conditions=list(dict.fromkeys(conditions)),
    )
