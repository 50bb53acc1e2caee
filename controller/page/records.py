"""What a ledger tells a page: events, plans with their heat maps and frontiers, lines over time."""

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from controller.changes import rank_loads
from controller.changes.operations import Operation
from controller.changes.plans import Kept, PlanState
from controller.ledger.ledger import Ledger, Record
from placer.errors import PlacerError
from placer.files.plans import parse_plan
from placer.plan import Plan
from placer.report.page import (
    BALANCE,
    GPUS,
    MOST_HEAT,
    MOVES_SHOWN,
    Event,
    Heat,
    Line,
    Planned,
    Point,
    line,
)

PLANS = 200  # of a page, the newest
WAITING = (PlanState.PROPOSED, PlanState.APPROVED)
# Why there are no lines of these, where a ledger is all that there is.
NOT_KEPT = "a ledger does not keep it: open the page of a running controller"


class Told:
    """One ledger, since ``begins_s``. option: that commands need to find its controller; None: it
    has none to ask"""

    def __init__(self, ledger: Ledger, begins_s: float, option: str | None = "") -> None:
        self._ledger, self.begins_s, self._option = ledger, begins_s, option

    def events(self, pool: str | None = None) -> list[Event]:
        """Every decision, and how plans and operations went."""
        found = [
            self._event(one, one.value.outcome)
            for one in self._ledger.newest("decision", pool=pool)
        ]
        for plan in self._ledger.newest("plan", PLANS, pool):
            told = self._ledger.versions("plan", plan.id)
            found += [self._event(one, str(one.value.state)) for one in told]
        for one in self._ledger.newest("operation", pool=pool):
            operation: Operation = one.value
            begun = self._at(operation.begun_s)
            kind = operation.kind
            found.append(Event(begun, one.pool, one.id, "operation", kind, f"{kind} begins"))
            if operation.is_final:
                ended = f"{kind}: {operation.why or one.reason}"
                found.append(self._event(one, str(operation.phase), ended))
        return found

    def plans(self, pool: str | None = None) -> list[Planned]:
        """Newest first. The file of the newest and of those that wait is read, too."""
        found, room, seen = [], MOST_HEAT, set[str]()
        for record in self._ledger.newest("plan", PLANS, pool):
            heat = self._heat(record) if room > 0 else None
            room -= 2 * heat.layers * heat.ranks if heat is not None else 0
            is_read = record.pool not in seen or record.value.state in WAITING
            seen.add(record.pool)
            found.append(self._planned(record, heat, self._file(record) if is_read else None))
        return found

    def lines(self, pool: str, gpus: int = 0) -> Mapping[str, Line]:
        """gpus: that it has at the end, if that is known"""
        decisions = self._ledger.newest("decision", pool=pool)[::-1]
        at_s = [self._at(one.at_s) for one in decisions]
        found = {BALANCE: line(at_s, [one.value.balancedness for one in decisions])}
        steps: list[tuple[float, float]] = []
        for one in self._ledger.newest("operation", pool=pool)[::-1]:
            operation, scale = one.value, one.value.scale
            if scale is not None and operation.is_final and operation.engines:
                engines, at = operation.engines, self._at(operation.begun_s)
                after = scale.ranks if operation.phase == "succeeded" else scale.before
                steps += [(at, engines * scale.before), (self._at(one.at_s), engines * after)]
        if gpus and at_s:
            steps = [(at_s[0], steps[0][1] if steps else gpus), *steps, (at_s[-1], gpus)]
        steps.sort()
        found[GPUS] = line([at for at, _ in steps], [one for _, one in steps])
        return {name: one for name, one in found.items() if one.values}

    def _planned(self, record: Record[Kept], heat: Heat | None, file: Plan | None) -> Planned:
        kept, waits = record.value, record.value.state in WAITING
        command = f"placer approve {record.id}{self._option}"
        return Planned(
            record.id, record.pool, self._at(record.at_s), str(kept.state), record.reason,
            kept.width, kept.moved, kept.moved_bytes, kept.gain or None, kept.whole_gain,
            command if waits and self._option is not None else "",
            _frontier(file) if file else (), _moves(file) if file else (), heat,
        )  # fmt: skip

    def _file(self, record: Record[Kept]) -> Plan | None:
        """None for one that cannot be read."""
        with suppress(PlacerError, UnicodeDecodeError):
            return parse_plan((self._ledger.blob("plan", record.id) or b"").decode(), record.id)
        return None

    def _heat(self, record: Record[Kept]) -> Heat | None:
        if (found := rank_loads.read(self._ledger, record.id)) is None:
            return None
        kept, before, after = found
        packed = (base64.b64encode(one).decode() for one in (before, after))
        return Heat(kept.layers, kept.ranks, kept.peak, *packed)

    def _event(self, record: Record[Any], state: str, reason: str = "") -> Event:
        at_s = self._at(record.at_s)
        return Event(at_s, record.pool, record.id, record.kind, state, reason or record.reason)

    def _at(self, instant: float) -> float:
        return round(instant - self.begins_s, 3)


def begins(ledger: Ledger, pool: str | None = None) -> float:
    """When the first was written of what a page tells; 0 if nothing was. Unix seconds."""
    kinds = ("decision", "plan", "operation")
    found = (one.at_s for kind in kinds for one in ledger.newest(kind, pool=pool))
    return min(found, default=0.0)


def _frontier(plan: Plan) -> Sequence[Point]:
    """From nothing moved to the whole plan."""
    if plan.fit is None or plan.move_cost is None:
        return ()
    before_s = plan.fit.before.step_s
    reached = {(one.moved, 1 - one.step_s / before_s) for one in plan.frontier}
    whole = (plan.move_cost.moved, plan.gain or 0.0)
    return [Point(moved, round(gain, 5)) for moved, gain in sorted({(0, 0.0), whole, *reached})]


def _moves(plan: Plan) -> Sequence[tuple[int, int, str, str, str]]:
    shown = plan.moves[:MOVES_SHOWN]
    return [(one.layer, one.expert, one.origin, f"GPU {one.gpu}", one.reason) for one in shown]
