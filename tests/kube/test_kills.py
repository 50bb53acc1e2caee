"""Whenever an operator is killed: engines do each thing once, and workloads get each number once."""

from pathlib import Path

from tests.kube.cluster import Cluster
from tests.kube.kills import killed

WRITES = (
    "POST events", "PATCH moefleets/status", "POST placementplans", "PATCH placementplans/status",
    "PATCH statefulsets",
)  # fmt: skip
CALLS = ("PutPolicy", "ReportCapacity", "Approve", "ScaleTo")


def test_twenty_kills_at_boundaries(crds: Cluster, tmp_path: Path) -> None:
    fleets = 4
    told = killed(crds, tmp_path, "killed", fleets, kills=20)
    boundaries = {f"{when} {what}" for when in ("before", "after") for what in (*WRITES, *CALLS)}
    assert boundaries <= told.kills.keys()
    assert set(told.engine.values()) == {1}
    assert len(told.engine) == 3 * fleets  # a plan, up and down
    assert told.replicas == {f"fleet-{number}": [3, 2] for number in range(fleets)}
    assert sum(told.kills.values()) == 20
