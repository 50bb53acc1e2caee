"""How times, sizes and records are put for people."""

import json
from datetime import UTC, datetime
from typing import Any

from rich.filesize import decimal

from placer.plan import saving
from placer.report.plain import plain

_SPANS = ((86_400.0, "days"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))


def span(seconds: float) -> str:
    """119 s: "1 min"; as coarse as people want it."""
    seconds = max(seconds, 0.0)
    size, unit = next((one for one in _SPANS if seconds >= 2 * one[0]), _SPANS[-1])
    return f"{seconds / size:.0f} {unit}"


def moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def moves(plan: Any) -> str:
    """Of a Plan message."""
    size = f" ({decimal(plan.moved_bytes)})" if plan.moved_bytes else ""
    whole = plan.whole_gain if plan.HasField("whole_gain") else None
    less = f", {saving(plan.gain, whole)}" if plan.gain else ""
    return f"{plan.moved} slots{size} move{less}"


def state(record: Any) -> str:
    """Of a Record message, in a word or two."""
    body: dict[str, Any] = json.loads(record.body)
    if record.kind == "operation":
        return f"{body['kind']} {body['phase']}"
    if record.kind == "acknowledgement":
        is_refused = body.get("refused_epoch", 0) > body.get("epoch", 0)
        return "refused" if is_refused else "acknowledged"
    return str(body.get("state") or body.get("outcome") or record.kind)


def reason(record: Any) -> str:
    """And of an operation that ended, how much it copied."""
    told = plain(record.reason)
    if record.kind == "operation":
        body = json.loads(record.body)
        if told == body["plan_id"] and body["copied_bytes"]:
            told += f", {decimal(body['copied_bytes'])} copied"
    return told
