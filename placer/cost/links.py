"""Seconds that a layer's tokens spend on the links.

A token goes once to each remote GPU of its node, and once to each remote node: there to the GPU
with its owner's place in the node, which forwards it (as DeepEP does). Of each GPU the busier
direction counts, of the classes of links (local, network) the slower.
"""

import numpy as np

from placer.arrays import FloatArray
from placer.cost.traffic import Flow
from placer.topology import Link, Topology

# Share of the local links' rate that all-to-all kernels reach, measured: DeepEP reports 153 to 158
# GB/s of NVLink's 450, and the network's full 50.
ALL_TO_ALL = 0.35


def local_rate(topology: Topology) -> float:
    """Bytes a second of one GPU in an all-to-all inside its node."""
    return topology.local.bytes_per_s * ALL_TO_ALL


def seconds(flow: Flow, topology: Topology, token_bytes: float) -> FloatArray:
    """[layers] the slowest GPU's time for a flow of tokens."""
    gpus, nodes, size = topology.gpus, topology.nodes, topology.gpus_per_node
    node_of = topology.node_of
    place = np.arange(gpus) % size
    layers = len(flow.gpu)

    # Over the network: owner -> the GPU in the same place of each other node.
    remote = flow.node * (node_of[:, None] != np.arange(nodes))
    out = remote.sum(axis=2)
    into = np.zeros((layers, gpus))
    for node in range(nodes):
        for at in range(size):
            into[:, node * size + at] = remote[:, place == at, node].sum(axis=1)
    network = _slowest(out, into, topology.network.bytes_per_s, token_bytes)
    network += topology.network.latency_s * (network > 0)

    # Inside a node: from the owner, or from the GPU that forwards for it.
    sender = node_of[None, :] * size + place[:, None]  # [owner, gpu]
    carried = flow.gpu * (sender != np.arange(gpus))
    into = carried.sum(axis=1)
    forwards = sender[:, :, None] == np.arange(gpus)  # [owner, gpu, sender]
    out = np.einsum("lhg,hgs->ls", carried, forwards)
    local = _slowest(out, into, local_rate(topology), token_bytes)
    local += topology.local.latency_s * (local > 0)
    return np.maximum(network, local)


def allgather_seconds(topology: Topology, tokens: float, token_bytes: float) -> float:
    """Every GPU gets every other GPU's tokens; over the network each token enters a node once.

    The reduce-scatter that brings the results back moves as many.
    """
    gpus, nodes = topology.gpus, topology.nodes
    total = tokens * token_bytes
    times = [0.0]
    if topology.gpus_per_node > 1:
        times.append(_time(total * (gpus - 1) / gpus, topology.local))
    if nodes > 1:
        per_gpu = total * (nodes - 1) / nodes / topology.gpus_per_node
        times.append(_time(per_gpu, topology.network))
    return max(times)


def exposed(links_s: FloatArray, experts_s: FloatArray, overlap: float) -> FloatArray:
    """[layers] share of the links' seconds that is not hidden behind the experts': what does not
    overlap, and of the rest that which the experts do not last for."""
    hidden = overlap * links_s
    seconds = links_s - hidden + np.maximum(hidden - experts_s, 0)
    return np.divide(seconds, links_s, out=np.ones_like(links_s), where=links_s > 0)


def _slowest(
    out: FloatArray, into: FloatArray, bytes_per_s: float, token_bytes: float
) -> FloatArray:
    busiest: FloatArray = np.maximum(out, into).max(axis=1) * token_bytes / bytes_per_s
    return busiest


def _time(size: float, link: Link) -> float:
    return size / link.bytes_per_s + link.latency_s
