"""What is worth an event."""

from typing import Any

from controller.kube.wanted.news import of_fleet, of_plan


def status(ready: str = "Serving", moves: str = "Idle", told: str = "", **more: Any) -> Any:
    found = [("Ready", ready), ("Reconciling", moves), ("Stalled", "None")]
    conditions = [{"type": name, "reason": reason, "message": told} for name, reason in found]
    return {"conditions": conditions, **more}


def reasons(before: Any, after: Any) -> list[str]:
    return [event.reason for event in of_fleet(before, after)]


def test_of_a_new_fleet_one_thing_is_told() -> None:
    assert reasons({}, status(moves="Scaling")) == ["Serving"]


def test_nothing_new_is_no_event() -> None:
    assert reasons(status(), status()) == []
    assert reasons(status("Scaling", told="1 pod"), status("Scaling", told="2 pods")) == []


def test_another_reason_is_one_and_another_fault_of_the_same_kind_too() -> None:
    assert reasons(status(), status("NoPods")) == ["NoPods"]
    again = reasons(status("PolicyRefused", told="a"), status("PolicyRefused", told="b"))
    assert again == ["PolicyRefused"]


def test_what_is_over_is_none() -> None:
    assert reasons(status(moves="Scaling"), status(moves="Idle")) == []


def test_a_new_decision_is_one_with_its_reason() -> None:
    def decided(outcome: str, at: str) -> Any:
        return status(decision={"outcome": outcome, "at": at, "reason": f"since {at}"})

    [event] = of_fleet(decided("hold", "1"), decided("propose", "2"))
    assert (event.reason, event.message) == ("DecidedPropose", "since 2")
    assert of_fleet(decided("hold", "1"), decided("hold", "1")) == []
    assert of_fleet(decided("hold", "1"), status()) == []


def test_each_phase_of_a_plan_is_one() -> None:
    told = {"conditions": [{"type": "Ready", "message": "it pays"}]}
    [event] = of_plan("chat-1", {}, {"phase": "Proposed", **told})
    assert (event.reason, event.message) == ("PlanProposed", "chat-1: it pays")
    assert of_plan("chat-1", {"phase": "Proposed"}, {"phase": "Proposed"}) == []
    [foreign] = of_plan("chat-1", {}, {"phase": "Foreign"})
    assert foreign.is_warning
