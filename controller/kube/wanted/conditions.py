"""Ready, Reconciling and Stalled, as kstatus has them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from controller.kube.wanted.world import rfc3339

# Whether it holds (None: that is not known), its reason, and a sentence.
Condition: TypeAlias = tuple[bool | None, str, str]


def merged(
    before: Sequence[Mapping[str, Any]], generation: int, now: float, **wanted: Condition
) -> list[dict[str, Any]]:
    """By type. The time of one moves when its status does."""
    old = {one["type"]: one for one in before}
    found = []
    for name, (holds, reason, message) in wanted.items():
        status = "Unknown" if holds is None else str(holds)
        kept = old.get(name, {})
        same = kept.get("status") == status
        found.append({
            "type": name, "status": status, "reason": reason, "message": message,
            "observedGeneration": generation,
            "lastTransitionTime": kept["lastTransitionTime"] if same else rfc3339(now),
        })  # fmt: skip
    return found


def of(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next((one for one in status.get("conditions") or [] if one["type"] == name), {})
