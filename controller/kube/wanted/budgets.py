"""What budgets allow at a moment: of those for a reason that are open the strictest counts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from cronsim import CronSim, CronSimError

from placer.errors import PlacerError

MOST = 2**63 - 1  # bytes
_SUFFIX = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
}  # fmt: skip


class BudgetError(PlacerError):
    """A budget that cannot be read."""


@dataclass(frozen=True, slots=True)
class Allowed:
    """
    bytes_per_minute: None: no limit; 0: nothing may begin
    why:              nothing may begin; empty if something may
    until:            unix seconds when that may change; None if it never does
    """

    bytes_per_minute: int | None = None
    why: str = ""
    until: float | None = None


def allowed(budgets: Sequence[Mapping[str, Any]], reason: str, now: float) -> Allowed:
    """reason: Rebalance, Scale or Repair"""
    mine = [one for one in budgets if reason in (one.get("reasons") or [reason])]
    if not mine:
        return Allowed()
    states = [(one, *_window(one, now)) for one in mine]
    until = min((edge for _, _, edge in states if edge is not None), default=None)
    opened = [one for one, is_open, _ in states if is_open]
    if not opened:
        return Allowed(0, f"no budget for {reason} is open now", until)
    if any(one.get("frozen") for one in opened):
        return Allowed(0, f"a budget for {reason} is frozen now", until)
    limits = [quantity(one["bytesPerMinute"]) for one in opened if "bytesPerMinute" in one]
    return Allowed(min(limits, default=None), "", until)


def quantity(text: str | int) -> int:
    """Of Kubernetes: 10G, 512Mi, 1e9."""
    found = re.fullmatch(
        r"([0-9]+(?:[.][0-9]+)?(?:[eE][0-9]{1,2})?)([kMGTP]i?|Ki|)", str(text), re.ASCII
    )
    if found is None or found[2] not in _SUFFIX:
        raise BudgetError(f"budgets: {text!r} is no number of bytes: write 10G or 512Mi")
    # As Kubernetes' own; and a number of a million digits would keep everybody waiting.
    return min(int(Decimal(found[1]) * _SUFFIX[found[2]]), MOST)


def _window(budget: Mapping[str, Any], now: float) -> tuple[bool, float | None]:
    """Whether it is open, and until when that is so."""
    if "schedule" not in budget:
        return True, None
    at = datetime.fromtimestamp(now, UTC)
    try:
        # A moment of the schedule itself counts as begun.
        begun = next(CronSim(budget["schedule"], at + timedelta(seconds=1), reverse=True), None)
        begins = next(CronSim(budget["schedule"], at), None)
    except CronSimError as error:
        raise BudgetError(
            f"budgets: schedule {budget['schedule']!r}: {error}: write five fields, such as "
            '"0 22 * * *"'
        ) from error
    lasts = _duration(budget["duration"])
    edges = [] if begins is None else [begins]
    is_open = begun is not None and at < begun + lasts
    if begun is not None and is_open:
        edges.append(begun + lasts)
    return is_open, min(edge.timestamp() for edge in edges) if edges else None


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?", text)
    if found is None:
        raise BudgetError(f"budgets: duration {text!r} is no time: write 8h or 1h30m")
    return timedelta(hours=int(found[1] or 0), minutes=int(found[2] or 0))
