"""The controller's plans as objects, and what people make of those."""

from typing import Any

import pytest

from controller.kube.wanted import plans
from placer.v1 import placement_pb2
from tests.controller.kube.tiny_fleet import (
    APPROVED,
    DIGEST,
    NAME,
    call,
    condition,
    fleet,
    plan,
    plan_object,
    wanted,
)

KNOWN = {"plan-1": plan()}


def state(name: str) -> Any:
    return placement_pb2.PlanState.Value(f"PLAN_STATE_{name}")


def test_a_proposal_becomes_an_object_of_its_fleet() -> None:
    found = wanted(plans=KNOWN)
    assert found.plans == [KNOWN["plan-1"]]
    assert found.status["plans"] == {"proposed": NAME}
    body = plans.body_of(fleet(), KNOWN["plan-1"], [{"gpu": 1, "source": None}])
    assert body["metadata"]["name"] == NAME
    assert body["metadata"]["ownerReferences"][0]["uid"] == "uid-chat"
    assert body["spec"]["digest"] == DIGEST
    assert body["spec"]["moves"]["ranks"] == [{"rank": 1, "in": 1, "out": 0}]


def test_an_object_says_why_its_plan_was_proposed_though_it_was_approved_before() -> None:
    approved = plan(reason="mode is automatic", reasons=["it pays", "layer 0, expert 3: hot"])
    told = plans.body_of(fleet(), approved, [])["spec"]["reasons"]
    assert told == ["it pays", "layer 0, expert 3: hot"]
    of_an_earlier_release = plans.body_of(fleet(), plan(), [])
    assert of_an_earlier_release["spec"]["reasons"] == ["it pays"]


def test_of_many_ranks_those_with_the_most_moves_are_told() -> None:
    moves = [{"gpu": gpu, "source": 0} for gpu in range(100) for _ in range(1 + gpu % 2)]
    told = plans.body_of(fleet(), plan(), moves)["spec"]["moves"]["ranks"]
    assert len(told) == 64
    assert told[0] == {"rank": 0, "in": 1, "out": 150}


def test_what_has_ended_makes_no_object() -> None:
    assert wanted(plans={"plan-1": plan(state=state("SUPERSEDED"))}).plans == []


def test_an_approval_is_passed_on_with_who_and_what() -> None:
    asked = call(wanted(plans=KNOWN, **objects(plan_object(approval=APPROVED))))
    request = asked.request
    assert (asked.method, request.plan_id, request.version) == ("Approve", "plan-1", 3)
    assert (request.approver, request.digest) == ("alice", DIGEST)
    assert request.idempotency_key == f"uid-plan/approve/{DIGEST}"


def objects(*found: Any) -> dict[str, Any]:
    return {"objects": found}


@pytest.mark.parametrize("name", ["APPROVED", "APPLYING", "APPLIED", "ROLLED_BACK"])
def test_what_is_approved_already_is_not_approved_again(name: str) -> None:
    found = looked({"plan-1": plan(state=state(name))}, plan_object(approval=APPROVED))
    assert found.calls == []


def test_no_approval_is_none() -> None:
    told = {**APPROVED, "approved": False}
    assert looked(KNOWN, plan_object(approval=told)).calls == []


def looked(known: Any, *found: Any, **changes: Any) -> Any:
    return wanted(**changes, plans=known, **objects(*found))


def test_an_approval_that_is_refused_says_why_and_is_not_made_again() -> None:
    refused = {f"uid-plan/approve/{DIGEST}": "another operation is at work"}
    found = looked(KNOWN, plan_object(approval=APPROVED), refused=refused)
    assert found.calls == []
    told = found.statuses[NAME]["conditions"]
    assert [one["message"] for one in told if one["type"] == "Stalled"] == list(refused.values())


def test_deleting_what_waits_rejects_it() -> None:
    before = fleet(status={"plans": {"proposed": NAME}})
    asked = call(wanted(before, plans=KNOWN))
    assert (asked.method, asked.request.plan_id) == ("Reject", "plan-1")


def test_an_object_of_a_fleet_that_is_gone_goes_and_rejects_nothing() -> None:
    """As one that was made anew finds those of the one before, until they are collected."""
    before = {**plan_object(), "owner": "uid-before"}
    named = fleet(status={"plans": {"proposed": NAME}})
    for now in (fleet(), named):
        found = wanted(now, plans=KNOWN, objects=[before])
        assert (found.calls, found.obsolete, found.plans) == ([], [before], [KNOWN["plan-1"]])


def test_deleting_what_was_approved_makes_it_again() -> None:
    before = fleet(status={"plans": {"proposed": NAME}})
    found = wanted(before, plans={"plan-1": plan(state=state("APPROVED"))})
    assert found.calls == []
    assert len(found.plans) == 1


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"ledgerId": "other"}, "is of ledger other, and the controller's is ledger-1"),
        ({"digest": "sha256:" + "cd" * 32}, "says another digest or epoch than plan-1 has"),
        ({"epoch": 6}, "says another digest or epoch than plan-1 has"),
    ],
)
def test_a_plan_that_is_not_the_controllers_is_foreign(spec: Any, why: str) -> None:
    found = looked(KNOWN, plan_object(approval=APPROVED, **spec))
    assert found.calls == []
    assert found.statuses[NAME]["phase"] == "Foreign"
    assert condition(found, "Stalled")[1] == "ForeignPlan"
    assert why in condition(found, "Stalled")[2]


def test_a_plan_that_nobody_has_asked_for_yet_is_not_judged() -> None:
    assert looked({}, plan_object()).statuses == {}
    assert looked({}, plan_object(), unknown={"plan-1"}).statuses[NAME]["phase"] == "Foreign"


def test_what_has_ended_stays_so_whatever_ledger_there_is() -> None:
    found = looked({}, plan_object("Superseded", ledgerId="other"))
    assert found.statuses == {}


def test_ranks_are_told_by_what_they_serve() -> None:
    applied = plan(state=state("APPLYING"))
    applied.acknowledgements.add(engine="e", rank=0, pod="uid-0", epoch=5, digest=DIGEST)
    applied.acknowledgements.add(engine="e", rank=1, pod="uid-1", refused="no room")
    applied.acknowledgements.add(engine="e", rank=2, pod="uid-2", digest="sha256:old")
    status = looked({"plan-1": applied}, plan_object()).statuses[NAME]
    told = [one["state"] for one in status["acknowledgements"]]
    assert told == ["Applied", "Refused", "Waiting"]


def test_of_plans_that_have_ended_the_newest_ten_are_kept() -> None:
    ended = [
        {**plan_object("Superseded", epoch=epoch), "metadata": {"name": f"chat-{epoch}"}}
        for epoch in range(12)
    ]
    assert [one["spec"]["epoch"] for one in looked({}, *ended).obsolete] == [1, 0]


def test_the_same_plan_says_the_same() -> None:
    status = looked(KNOWN, plan_object()).statuses[NAME]
    again = {**plan_object(), "status": status}
    assert looked(KNOWN, again).statuses == {}
