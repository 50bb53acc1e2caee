"""The kinds as the server has them: what it takes, what it refuses and with which words."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from placer.optimizers import OPTIMIZERS
from placer.topology import PRESETS
from tests.kube.cluster import Cluster
from tests.kube.conftest import CRDS
from tests.kube.objects import DIGEST, fleet, plan
from tests.kube.refusals import FLEETS, LWS, PLANS, RAY, budget, expression, selector

FILES = sorted((CRDS / "templates").glob("*.yaml"))
VALID: list[list[tuple[str, Any]]] = [
    [],
    [("workload.reference.kind", "Deployment")],
    [("workload.reference", LWS)],
    [("workload.reference", RAY | {"workerGroup": "gpus"})],
    selector(matchLabels={"app": "chat"}),
    expression(key="app", operator="In", values=["chat", "code"]),
    expression(key="app", operator="Exists"),
    [("pool", "default.talk")],
    [("topology", {"preset": "h200", "nodes": 4})],
    [("topology", {"fromNodeLabels": True})],
    [("redundancy", 32), ("mode", "automatic")],
    [("objective", {"optimizer": "eplb", "dispatch": "dedup", "phase": "decode", "maxMoved": 1})],
    [("objective", {"horizonSeconds": 0, "surviveNode": True, "maxMoved": 0})],
    [("guard", 0.2), ("overlap", 1)],
    budget(schedule="0 22 * * 1-5", duration="8h", reasons=["Rebalance"], bytesPerMinute="10G"),
    budget(schedule="*/30 0,12 1-31 JAN,12 mon-5", duration="1h30m"),
    budget(schedule="59 23 10,20,31 1-10 0-7", duration="90m", bytesPerMinute="1.5Gi"),
    budget(frozen=True),
    budget(bytesPerMinute=1000000),
    [("width", {"ranks": 4, "minRanks": 4, "maxRanks": 8})],
    [("slo", {"ttftMilliseconds": 500, "tpotMilliseconds": 50, "attainment": 1})],
    [("preScheduling", {"enabled": True, "controlPercent": 0}), ("objective.dispatch", "coherent")],
    [("width", {"minRanks": 2}), ("slo", {"tpotMilliseconds": 1})],
]


def named(number: int) -> str:
    return f"no-{number}"


@pytest.mark.parametrize("number", range(len(VALID)))
def test_a_valid_fleet_is_taken(crds: Cluster, number: int) -> None:
    made = fleet(VALID[number], named(number))
    crds.kubectl("create", "--dry-run=server", "-f", "-", stdin=made)


@pytest.mark.parametrize("number", range(len(FLEETS)))
def test_an_invalid_fleet_is_refused_with_its_field_and_the_remedy(
    crds: Cluster, number: int
) -> None:
    changes, field, remedy = FLEETS[number]
    said = crds.refused("create", "-f", "-", stdin=fleet(changes, named(number)))
    assert field in said
    assert remedy in said


@pytest.mark.parametrize("number", range(len(PLANS)))
def test_an_invalid_plan_is_refused_with_its_field_and_the_remedy(
    crds: Cluster, number: int
) -> None:
    changes, field, remedy = PLANS[number]
    said = crds.refused("create", "-f", "-", stdin=plan(changes, named(number)))
    assert field in said
    assert remedy in said


def test_there_are_as_many_as_promised() -> None:
    assert len(VALID) >= 20
    assert len(FLEETS) + len(PLANS) >= 60


def test_a_name_is_short_enough_to_be_a_label(crds: Cluster) -> None:
    assert "at most 63 characters" in crds.refused("create", "-f", "-", stdin=fleet(name="x" * 64))
    crds.kubectl("create", "--dry-run=server", "-f", "-", stdin=fleet(name="x" * 63))


@pytest.fixture
def chat(crds: Cluster) -> Iterator[Cluster]:
    width = {"ranks": 4, "minRanks": 2, "maxRanks": 8}
    crds.kubectl("create", "-f", "-", stdin=fleet([("width", width)]))
    yield crds
    crds.kubectl("delete", "moefleet", "chat")


def test_what_is_not_said_has_the_controllers_defaults(chat: Cluster) -> None:
    spec = chat.get("moef", "chat")["spec"]
    assert spec["mode"] == "advisory"
    assert spec["topology"] == {"preset": "h100"}
    assert spec["guard"] == spec["overlap"] == 0
    assert "redundancy" not in spec  # nothing is compared
    assert spec["preScheduling"] == {"enabled": False, "controlPercent": 5}
    assert spec["objective"] == {
        "optimizer": "joint",
        "dispatch": "allgather",
        "phase": "mixed",
        "horizonSeconds": 600,
        "maxMoved": 0.1,
        "surviveNode": False,
    }


def test_kubectl_scale_sets_ranks_within_their_limits(chat: Cluster) -> None:
    chat.kubectl("scale", "moef", "chat", "--replicas=6")
    assert chat.get("moef", "chat")["spec"]["width"]["ranks"] == 6
    said = chat.refused("scale", "moef", "chat", "--replicas=9")
    assert "spec.width.ranks" in said
    assert "raise maxRanks" in said


def test_scale_tells_the_ranks_that_work_and_whose_pods_they_are(chat: Cluster) -> None:
    status = {"width": {"engineActive": 3}, "selector": "app=chat"}
    patch = yaml.safe_dump({"status": status})
    chat.kubectl("patch", "moef", "chat", "--subresource=status", "--type=merge", "-p", patch)
    scale = yaml.safe_load(chat.kubectl("get", "moef", "chat", "--subresource=scale", "-o", "yaml"))
    assert scale["spec"]["replicas"] == 4
    assert scale["status"] == {"replicas": 3, "selector": "app=chat"}


def test_status_and_spec_are_written_apart(chat: Cluster) -> None:
    before = chat.get("moef", "chat")
    changes = {"spec": {"guard": 0.5}, "status": {"pool": "default.chat"}}
    patch = yaml.safe_dump(changes)
    chat.kubectl("patch", "moef", "chat", "--subresource=status", "--type=merge", "-p", patch)
    after = chat.get("moef", "chat")
    assert after["spec"] == before["spec"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert after["status"] == {"pool": "default.chat"}


@pytest.mark.parametrize("value", ["default.second", None])
def test_a_pool_may_not_change(crds: Cluster, value: str | None) -> None:
    crds.kubectl("create", "-f", "-", stdin=fleet([("pool", "default.first")], "pooled"))
    try:
        patch = yaml.safe_dump({"spec": {"pool": value}})
        said = crds.refused("patch", "moef", "pooled", "--type=merge", "-p", patch)
        assert "spec.pool" in said
        assert "make another MoEFleet with that pool" in said
    finally:
        crds.kubectl("delete", "moefleet", "pooled")


def test_a_condition_has_one_of_the_reasons_that_are_fixed(chat: Cluster) -> None:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    put = ["patch", "moef", "chat", "--subresource=status", "--type=merge", "-p"]
    whole = yaml.safe_dump({"status": {"conditions": [ready | {"reason": "Serving"}]}})
    chat.kubectl(*put, whole)
    said = chat.refused(*put, whole.replace("Serving", "Fine"))
    assert "status.conditions[0].reason" in said
    assert '"PodsOfAnotherModel"' in said


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("moefleet", "how placer looks after it"),
        ("moef.spec.budgets.schedule", "a cron line of five fields"),
        ("mplan.spec.approval.by", "The approver's user name"),
    ],
)
def test_kubectl_explain_is_the_manual(crds: Cluster, field: str, words: str) -> None:
    crds.until(  # the server publishes schemas a moment after it serves the kinds
        lambda: words in " ".join(crds.run("kubectl", "explain", field).stdout.split()), words
    )


def test_columns_are_few_unless_more_are_asked_for(chat: Cluster) -> None:
    few, wide = (
        chat.kubectl("get", "moef", *more).splitlines()[0] for more in ([], ["-o", "wide"])
    )
    assert few.split() == [
        "NAME",
        "READY",
        "REASON",
        "MODE",
        "DESIRED",
        "ACTIVE",
        "PROPOSED",
        "AGE",
    ]
    assert {"POOL", "MODEL", "BALANCEDNESS", "DECISION"} <= set(wide.split())


def schemas(schema: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each field's schema, by its path."""
    yield path, schema
    for name, one in schema.get("properties", {}).items():
        yield from schemas(one, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from schemas(schema[key], f"{path}[]")


def schema_of(text: str) -> Any:
    return yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_field_is_described(path: Any) -> None:
    bare = [at for at, one in schemas(schema_of(path.read_text())) if "description" not in one]
    assert bare == [".metadata"]  # which the server describes, and nobody else may


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_rule_says_the_remedy(path: Any) -> None:
    rules = [
        rule
        for _, one in schemas(schema_of(path.read_text()))
        for rule in one.get("x-kubernetes-validations", [])
    ]
    assert rules
    for rule in rules:
        assert re.search(r": \S+|, or ", rule["message"]), rule["message"]


def test_presets_and_optimizers_are_placers() -> None:
    spec = schema_of((CRDS / "templates/moefleets.yaml").read_text())["properties"]["spec"]
    topology, objective = spec["properties"]["topology"], spec["properties"]["objective"]
    assert set(topology["properties"]["preset"]["enum"]) == set(PRESETS)
    assert set(objective["properties"]["optimizer"]["enum"]) == set(OPTIMIZERS)


def test_a_digest_is_as_placer_writes_it() -> None:
    spec = schema_of((CRDS / "templates/placementplans.yaml").read_text())["properties"]["spec"]
    rules = spec["properties"]["digest"]["x-kubernetes-validations"]
    pattern = re.search(r"matches\('(.*)'\)", rules[-1]["rule"])
    assert pattern is not None
    assert re.fullmatch(pattern[1], DIGEST)
