"""How replicas share their expert's tokens under the dispatch rule, expected from a profile.

The rule (serving.py) prefers a replica where the token is, then one in that node, then a place that
the token visits anyway, then what its hash names. So each replica serves the tokens of its own GPU;
the others fall to replicas by co-location: to those on whose GPUs the token uses other experts too.
Experts with one replica choose first, then the others in the order of their ids (the rule looks at
how many replicas they have before that).

Of r replicas that a token visits anyway with the chances v, independently, one is taken with

    q = v * E[1 / (1 + others visited)] + (1 - v) * P(no other visited) / r,

with the mean chance of the others for theirs: exact for two replicas. Then

    share = 1/G + (GPUs of the node without a replica)/G * q(of the node's)
                + (GPUs of nodes without a replica)/G * q(of all).

Under ``allgather`` the hash alone decides, evenly.
"""

import numpy as np

from placer.arrays import FloatArray, IntArray, pair_entries
from placer.objective import Dispatch
from placer.placement import Placement
from placer.profile import Profile


def visited(colocated: FloatArray, top_k: int) -> FloatArray:
    """Chance that a token visits a place, of the mean number of its top_k - 1 other experts there.

    As if each of them were there or not by itself.
    """
    others = max(top_k - 1, 1)
    chance: FloatArray = 1 - (1 - np.clip(colocated / others, 0, 1)) ** others
    return chance


def joined(chance: FloatArray, replicas: IntArray) -> FloatArray:
    """E[1 / (1 + others visited)] of r - 1 others, each visited with the chance."""
    v = np.maximum(chance, 1e-9)
    mean: FloatArray = (1 - (1 - v) ** replicas) / (replicas * v)
    return mean


def away(replicas: IntArray, places: int, dispatch: Dispatch) -> tuple[FloatArray, FloatArray]:
    """Of tokens whose home is elsewhere: the share that one of r replicas serves, and the chance
    that it serves one that visits its place anyway.

    A token at home in another replica's place stays there. Of the others' replicas each further one
    is co-located itself a quarter of the time (measured on recordings of three models, each apart:
    fan-out within 0.5% for placements that know no traffic, 2.6% for those made for it).
    """
    r = np.maximum(replicas, 1).astype(np.float64)
    if dispatch == "allgather":
        return 1 / r, 1 / r
    others = max(places - 1, 1)
    colocated = np.maximum(1 - (r - 1) / others, 0) / (1 + (r - 1) / 4)
    return (np.maximum(places / r - 1, 0) / others if places > 1 else 1 / r), colocated


def shares(profile: Profile, placement: Placement, dispatch: Dispatch) -> FloatArray:
    """[layers, experts, gpus] share of each expert's tokens that each GPU serves."""
    held = placement.held_in(placement.gpus)
    replicas = np.maximum(held.sum(axis=2), 1)
    even = held / replicas[:, :, None]
    if dispatch == "allgather" or replicas.max() == 1:
        return even
    gpus, nodes = placement.gpus, placement.nodes
    experts, _, first = placement.content(gpus)
    every = np.arange(placement.layers)[:, None, None], experts
    use = np.maximum(profile.load / profile.tokens, 1e-12)[every]
    # Shares of a GPU's other experts that choose before each; ids ascend.
    lower = np.tri(experts.shape[2], k=-1)
    of_all, of_single = first / replicas[every], first & (replicas[every] == 1)
    ahead = lower * of_all[:, :, None] + lower.T * of_single[:, :, None]
    if profile.coactivation is None:
        near = (ahead * use[:, :, None]).sum(axis=3)
    else:
        pairs = zip(pair_entries(profile.coactivation, experts, experts), ahead, strict=True)
        near = np.array([(both * one).sum(axis=2) for both, one in pairs]) / (profile.tokens * use)
    layer, gpu, _ = np.nonzero(first)
    chance = np.zeros(held.shape)
    chance[layer, experts[first], gpu] = visited(near[first], profile.top_k)

    several = replicas > 1
    found, held, chance = even, held[several], chance[several]
    size = gpus // nodes
    by_node = held.reshape(-1, nodes, size)
    in_node = by_node.sum(axis=2)
    inside = _taken(chance.reshape(by_node.shape), by_node).reshape(held.shape)
    home_node = np.repeat(size - in_node, size, axis=1)
    elsewhere = size * (in_node == 0).sum(axis=1)[:, None]
    found[several] = held * (1 + home_node * inside + elsewhere * _taken(chance, held)) / gpus
    return found


def _taken(chance: FloatArray, held: np.ndarray) -> FloatArray:
    """q of the replicas along the last axis. chance: 0 where none is held."""
    r = np.maximum(held.sum(axis=-1, keepdims=True), 1)
    others = (chance.sum(axis=-1, keepdims=True) - chance) / np.maximum(r - 1, 1)
    raw = chance * joined(others, r) + (1 - chance) * (1 - others) ** (r - 1) / r
    raw = np.where(held, raw, 0.0)
    q: FloatArray = raw / np.maximum(raw.sum(axis=-1, keepdims=True), 1e-300)
    return q
