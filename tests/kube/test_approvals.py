"""Who may approve plans, and what the server refuses: forged plans, forged approvers, approvals of
another digest, withdrawn ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kube.cluster import Cluster
from tests.kube.conftest import CHART
from tests.kube.objects import DIGEST, plan

HERE = "placer-system"
NAME = "chat-1"
ALICE = "system:serviceaccount:people:alice"
OTHER = DIGEST.replace("0", "1")


@pytest.fixture(scope="module")
def operator(chart: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chart.account(HERE, "placer-operator", tmp_path_factory.mktemp("users"))


@pytest.fixture(scope="module")
def people(chart: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Alice has the role placer-admin, bob all of it but the right to approve."""
    folder = tmp_path_factory.mktemp("users")
    rules = chart.get("-n", HERE, "role", "placer-admin")["rules"]
    without = [rule for rule in rules if rule["verbs"] != ["approve"]]
    assert len(without) == len(rules) - 1
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "all-but-approve", "namespace": HERE},
        "rules": without,
    }
    chart.kubectl("apply", "-f", "-", stdin=role)
    for name, role_name in (("alice", "placer-admin"), ("bob", "all-but-approve")):
        about = {"name": name, "namespace": "people"}
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": about}
        chart.kubectl("apply", "-f", "-", stdin=account)
        bind = ["create", "rolebinding", name, f"--role={role_name}"]
        chart.kubectl("-n", HERE, *bind, f"--serviceaccount=people:{name}")
    found = {name: chart.account("people", name, folder) for name in ("alice", "bob")}
    ask = ["auth", "can-i", "patch", "placementplans.placer.dev", "-n", HERE]

    def may() -> bool:
        return not any(chart.run("kubectl", *ask, user=user).returncode for user in found.values())

    chart.until(may, "their rights are in force")
    yield found
    for name in ("alice", "bob"):
        chart.kubectl("-n", HERE, "delete", "rolebinding", name)


@pytest.fixture
def proposed(chart: Cluster, operator: Path) -> Iterator[None]:
    """A plan that the operator made."""
    made = plan(namespace=HERE)

    def in_force() -> bool:
        """A policy is, a moment after it was made."""
        tried = chart.run("kubectl", "create", "--dry-run=server", "-f", "-", stdin=made)
        return tried.returncode != 0

    chart.until(in_force, "an administrator's plan is refused")
    chart.kubectl("create", "-f", "-", stdin=made, user=operator)
    yield
    chart.kubectl("-n", HERE, "delete", "mplan", NAME)


def approval(**keys: Any) -> list[str]:
    """kubectl's words for it."""
    stanza = {"approved": True, "digest": DIGEST} | keys
    return patch({"approval": stanza})


def patch(spec: Any) -> list[str]:
    return ["-n", HERE, "patch", "mplan", NAME, "--type=merge", "-p", json.dumps({"spec": spec})]


def stands(chart: Cluster) -> Any:
    return chart.get("-n", HERE, "mplan", NAME)["spec"].get("approval")


@pytest.mark.usefixtures("proposed")
def test_whoever_has_the_verb_approves_in_their_own_name(
    chart: Cluster, people: dict[str, Path]
) -> None:
    chart.kubectl(*approval(by=ALICE), user=people["alice"])
    assert stands(chart) == {"approved": True, "digest": DIGEST, "by": ALICE}


@pytest.mark.usefixtures("proposed")
def test_without_the_verb_nobody_approves(chart: Cluster, people: dict[str, Path]) -> None:
    bob = ALICE.replace("alice", "bob")
    said = chart.refused(*approval(by=bob), user=people["bob"])
    assert f"spec.approval: {bob} may not approve plans in {HERE}" in said
    assert "the verb approve on placementplans.placer.dev, which the role placer-admin has" in said
    assert stands(chart) is None


@pytest.mark.usefixtures("proposed")
@pytest.mark.parametrize("by", ["system:serviceaccount:people:bob", "admin", "alice"])
def test_nobody_approves_in_the_name_of_another(
    chart: Cluster, people: dict[str, Path], by: str
) -> None:
    said = chart.refused(*approval(by=by), user=people["alice"])
    assert f"spec.approval.by: you are {ALICE}" in said
    assert "write your own user name" in said


@pytest.mark.usefixtures("proposed")
def test_an_approval_says_who_and_what(chart: Cluster, people: dict[str, Path]) -> None:
    said = chart.refused(*approval(), user=people["alice"])
    assert "spec.approval.by" in said
    assert "write your user name into spec.approval.by" in said
    said = chart.refused(*approval(by=ALICE, digest=OTHER), user=people["alice"])
    assert "spec.approval.digest" in said
    assert "write the value of spec.digest there" in said


@pytest.mark.usefixtures("proposed")
@pytest.mark.parametrize(
    "later",
    [
        {"approval": None},
        {"approval": {"approved": False}},
        {"approval": {"by": "somebody"}},
        {"approval": {"digest": OTHER}},
    ],
    ids=str,
)
def test_an_approval_is_not_withdrawn_nor_changed(
    chart: Cluster, people: dict[str, Path], later: Any
) -> None:
    chart.kubectl(*approval(by=ALICE), user=people["alice"])
    before = stands(chart)
    for user in (people["alice"], None):  # an administrator does not, either
        said = chart.refused(*patch(later), user=user)
        assert "spec.approval" in said
    assert stands(chart) == before


@pytest.mark.usefixtures("proposed")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fleet", "code"),
        ("pool", "other"),
        ("planId", "plan-2"),
        ("digest", OTHER),
        ("epoch", 2),
        ("ledgerId", "ledger-2"),
        ("score", {"gain": 0.9}),
        ("score", None),
        ("reasons", ["because"]),
        ("moves", {"experts": 0}),
    ],
)
def test_what_a_plan_says_does_not_change(chart: Cluster, field: str, value: Any) -> None:
    said = chart.refused(*patch({field: value}))
    assert f"spec.{field}" in said
    assert "approve this plan, or wait for the next one" in said


def test_plans_are_the_operators(chart: Cluster, people: dict[str, Path], operator: Path) -> None:
    forged = plan(namespace=HERE, name="forged")
    said = chart.refused("create", "-f", "-", stdin=forged)
    assert "plans are made by placer's operator alone" in said
    assert "placer apply FILE" in said
    assert "cannot create" in chart.refused("create", "-f", "-", stdin=forged, user=people["alice"])
    approved = plan([("approval", {"approved": True, "digest": DIGEST, "by": "x"})], "own", HERE)
    said = chart.refused("create", "-f", "-", stdin=approved, user=operator)
    assert f"system:serviceaccount:{HERE}:placer-operator may not approve" in said


def test_other_namespaces_are_none_of_this_releases_business(chart: Cluster) -> None:
    chart.kubectl("create", "--dry-run=server", "-f", "-", stdin=plan(namespace="people"))


@pytest.mark.usefixtures("proposed")
def test_where_the_server_can_it_fills_the_approver_in(
    chart: Cluster, people: dict[str, Path]
) -> None:
    known = chart.kubectl("api-resources", "--api-group=admissionregistration.k8s.io", "-o", "name")
    if "mutatingadmissionpolicies" not in known:
        pytest.skip("this server has no MutatingAdmissionPolicy: it is older than 1.36")
    upgrade = ["upgrade", "placer", str(CHART), "-n", HERE, "--reuse-values", "--set"]
    chart.helm(*upgrade, "admission.mutating=true")
    try:
        tried = [*approval(), "--dry-run=server"]
        alice = people["alice"]
        chart.until(lambda: not chart.run("kubectl", *tried, user=alice).returncode, "it fills in")
        chart.kubectl(*approval(), user=alice)
        assert stands(chart) == {"approved": True, "digest": DIGEST, "by": ALICE}
    finally:
        chart.helm(*upgrade, "admission.mutating=false")
