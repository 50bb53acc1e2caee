"""What is worth an event: where a status says something that it did not say before."""

from collections.abc import Mapping
from typing import Any

from controller.kube.objects import Event
from controller.kube.wanted import conditions

ACTS = ("propose", "act")
AGAIN = " waits for approval"  # a plan that was proposed, at each look after that
QUIET = ("Idle", "None")
GOOD = ("Serving", "Scaling", "Applying", "Waiting")


def of_fleet(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    """Of a new fleet only whether it is ready, and why not."""
    found, told = [], set()
    for name in ("Ready", "Reconciling", "Stalled"):
        old, new = conditions.of(before, name), conditions.of(after, name)
        reason, message = new.get("reason", ""), new.get("message", "")
        said = old.get("reason"), old.get("message", "")
        news = reason != said[0] or (message != said[1] and reason not in GOOD)
        if news and reason not in QUIET and reason not in told and (before or name == "Ready"):
            told.add(reason)
            found.append(Event(reason, message, reason not in GOOD))
    old, new = before.get("decision") or {}, after.get("decision") or {}
    if old and new and (old["outcome"], old["at"]) != (new["outcome"], new["at"]):
        found.append(Event(f"Decided{new['outcome'].capitalize()}", new["reason"]))
    return found


def about(outcome: str, reason: str) -> str:
    """The plan that it is about: "plan-1: the MoE layers ..."; empty if it is about none."""
    return reason.partition(":")[0].removesuffix(AGAIN) if outcome in ACTS else ""


def of_plan(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Event]:
    phase = after["phase"]
    if before.get("phase") == phase:
        return []
    message = conditions.of(after, "Ready").get("message", "")
    return [Event(f"Plan{phase}", f"{name}: {message}", phase in ("Foreign", "Halted"))]
