"""Whenever an operator is killed: engines do each thing once, and so do workloads."""

from pathlib import Path

from tests.kube.cluster import Cluster
from tests.kube.kills import BOUNDARIES, killed


def test_twenty_kills_at_boundaries(crds: Cluster, tmp_path: Path) -> None:
    fleets = 4
    told = killed(crds, tmp_path, "killed", fleets, kills=20)
    assert told.kills.keys() >= BOUNDARIES
    assert set(told.engine.values()) == {1}
    assert len(told.engine) == 3 * fleets  # a plan, up and down
    assert told.replicas == {f"fleet-{number}": [3, 2] for number in range(fleets)}
    assert sum(told.kills.values()) == 20
