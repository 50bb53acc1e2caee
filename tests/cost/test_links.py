from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from placer.cost.links import allgather_seconds, local_rate, seconds
from placer.cost.traffic import Flow
from placer.topology import Link, Topology
from tests.builders import a_topology

FAST, SLOW = Link(100.0, 0.5), Link(10.0, 1.0)


def links(gpus: int, nodes: int) -> Topology:
    return replace(a_topology(gpus, nodes), local=FAST, network=SLOW)


def test_all_to_all_reaches_a_part_of_the_local_rate() -> None:
    assert local_rate(links(2, 1)) == 35


def flow(gpu: Sequence[Sequence[float]], nodes: int) -> Flow:
    """Every visit to a node is a visit to one GPU there, as for top-1."""
    per_gpu = np.array([gpu])
    per_node = per_gpu.reshape(1, len(gpu), nodes, -1).sum(axis=3)
    return Flow(per_gpu, per_node)


def test_what_stays_on_its_gpu_costs_nothing() -> None:
    assert seconds(flow([[9, 0], [0, 9]], 1), links(2, 1), 1.0).tolist() == [0]


def test_the_busier_direction_of_the_busiest_gpu_counts() -> None:
    # GPU 0 sends 3 + 4 tokens of 2 bytes and receives 1.
    found = seconds(flow([[0, 3, 4], [1, 0, 0], [0, 0, 0]], 1), links(3, 1), 2.0)
    assert found.tolist() == [7 * 2 / 35 + 0.5]


def test_nodes_are_reached_over_the_network() -> None:
    # GPU 0 to GPU 2, its counterpart in the other node: no forwarding.
    tokens = [[0, 0, 5, 0], [0] * 4, [0] * 4, [0] * 4]
    assert seconds(flow(tokens, 2), links(4, 2), 1.0).tolist() == [5 / 10 + 1]


def test_the_counterpart_forwards_inside_its_node() -> None:
    # GPU 0 to GPU 3: over the network to GPU 2, which forwards; the slower class decides.
    tokens = [[0, 0, 0, 500], [0] * 4, [0] * 4, [0] * 4]
    assert seconds(flow(tokens, 2), links(4, 2), 1.0).tolist() == [500 / 10 + 1]
    quick_network = Link(1e9, 0.0)
    forwarding = replace(links(4, 2), network=quick_network)
    assert seconds(flow(tokens, 2), forwarding, 1.0).tolist() == pytest.approx([500 / 35 + 0.5])


def test_a_token_for_two_gpus_of_a_node_crosses_the_network_once() -> None:
    gpu = np.zeros((1, 4, 4))
    gpu[0, 0, 2:] = 1
    node = np.zeros((1, 4, 2))
    node[0, 0, 1] = 1
    assert seconds(Flow(gpu, node), links(4, 2), 1.0).tolist() == [1 / 10 + 1]


def test_allgather_gives_every_gpu_every_token() -> None:
    assert allgather_seconds(links(1, 1), 100, 1.0) == 0
    assert allgather_seconds(links(4, 1), 100, 1.0) == 75 / 100 + 0.5
    assert allgather_seconds(links(4, 2), 100, 1.0) == pytest.approx(50 / 2 / 10 + 1)
