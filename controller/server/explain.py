"""The story of one record, in sentences."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from controller.changes import plans
from controller.changes.operations import Operation
from controller.fleet.workers import NAME, UnknownError
from controller.ledger.ledger import Ledger, Record, Unreadable
from controller.policies import policy
from placer.plan import saving

KINDS = ("plan", "operation", "decision", "acknowledgement", "reading")
DECIDED = (plans.PlanState.APPROVED, plans.PlanState.REJECTED)


def story(ledger: Ledger, id: str, most: int) -> list[Record[Any]]:
    """All versions of a plan, operation or decision, or the last ones, then the newest of what
    belongs to it."""
    for kind in KINDS:
        if found := ledger.versions(kind, id):
            return found[-most:] + _relatives(ledger, found[-1])
        if ledger.version(kind, id):
            ledger.get(kind, id)  # raises Unreadable
    raise UnknownError(f"nothing is known of {id[:NAME]!r}: `placer history` lists what is")


def _relatives(ledger: Ledger, record: Record[Any]) -> list[Record[Any]]:
    if record.kind == "plan":
        operations = ledger.newest("operation", pool=record.pool)
        return [one for one in operations if one.value.plan_id == record.id]
    if isinstance(record.value, Operation) and record.value.plan_id:
        with suppress(Unreadable):
            plan = ledger.get("plan", record.value.plan_id)
            return [plan] if plan else []
    return []


def sentences(records: Sequence[Record[Any]]) -> list[str]:
    """Steps of an operation that only go forward are left out."""
    told, last = [], ""
    for record in records:
        text = f"{record.id} {_state(record)}"
        if record.reason:
            text += f": {record.reason}"
        if text != last:
            at = datetime.fromtimestamp(record.at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
            told.append(f"{at}  {text}")
        last = text
    return told + _figures(records)


def _state(record: Record[Any]) -> str:
    match record.value:
        case plans.Kept(state=state, approver=who) if who and state in DECIDED:
            return f"{state} by {who}"
        case plans.Kept(state=state):
            return state
        case policy.Kept(outcome=outcome) if outcome:
            return outcome
        case Operation(kind=kind, phase=phase):
            return f"({kind}) {phase}"
    return record.kind


def _figures(records: Sequence[Record[Any]]) -> list[str]:
    told = []
    for record in {record.id: record for record in records}.values():  # the newest
        match record.value:
            case plans.Kept() as kept:
                told.append(
                    f"{record.id}: {kept.moved} slots ({kept.moved_bytes / 1e6:,.1f} MB) move; "
                    f"expected: {saving(kept.gain, kept.whole_gain)}; {kept.digest}"
                )
            case Operation() as operation:
                copied = "moved by the engines themselves"
                if operation.rounds:
                    copied = (
                        f"{operation.copied_bytes / 1e6:,.1f} MB copied, longest pause "
                        f"{operation.longest_pause_s * 1e3:.0f} ms"
                    )
                told.append(f"{record.id}: {copied}, {operation.engines} engines")
    return told
