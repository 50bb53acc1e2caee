"""How replicas share their expert's tokens under the dispatch rule, expected from a profile.

The rule (serving.py) prefers a replica where the token is, then one in that node, then a place that
the token visits anyway, then what its hash names. So each replica serves the tokens of its own GPU;
the others fall to replicas by co-location: to those on whose GPUs the token uses other experts too.
Experts with one replica choose first, then the others in the order of their ids (the rule looks at
how many replicas they have before that).

Of r replicas that a token visits anyway with the chances v, independently, one is taken with

    q = v * E[1 / (1 + others visited)] + (1 - v) * P(no other visited) / r,

with the mean chance of the others for theirs: exact for two replicas. Then

    share = P(here) + P(on a GPU of the node without a replica) * q(of the node's)
                    + P(in a node without a replica) * q(of all),

where a token is on each GPU as likely or, under ``coherent``, where one of its experts of the layer
before was served (``owners``).

Under ``allgather`` the hash alone decides, evenly.
"""

import numpy as np

from placer.arrays import BoolArray, FloatArray, IntArray, pair_entries
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
    if dispatch != "coherent" or profile.transitions is None:
        home = np.full((1, gpus), 1 / gpus)
        even[several] = _divided(held[several], chance[several], home, nodes)
        return even
    for at, some in enumerate(several):  # where tokens are follows from the layer before
        home = owners(profile, even, at)[some]
        even[at, some] = _divided(held[at, some], chance[at, some], home, nodes)
    return even


def owners(profile: Profile, shares: FloatArray, layer: int) -> FloatArray:
    """[experts, gpus] the chance that a token that uses the expert is on the GPU, under
    ``coherent``: where one of its experts of the layer before was served, each as likely.

    shares: [layers, experts, gpus] of each expert's tokens that each GPU serves
    """
    even = np.full(shares.shape[1:], 1 / shares.shape[2])
    if layer == 0 or profile.transitions is None:
        return even
    there = profile.transitions[layer - 1].T @ shares[layer - 1]
    total = there.sum(axis=1, keepdims=True)
    found: FloatArray = np.divide(there, total, out=even, where=total > 0)
    return found


def _divided(held: BoolArray, chance: FloatArray, home: FloatArray, nodes: int) -> FloatArray:
    """[rows, gpus] the shares of experts with several replicas.

    held, chance: [rows, gpus] where they are, and the chance that a token visits that anyway
    home:         [rows or 1, gpus] that a token is there
    """
    by_node = held.reshape(len(held), nodes, held.shape[1] // nodes)
    inside = _taken(chance.reshape(by_node.shape), by_node).reshape(held.shape)
    away = (home * ~held).reshape(by_node.shape).sum(axis=2)
    near, here = np.repeat(away, by_node.shape[2], axis=1), by_node.any(axis=2)
    elsewhere = (away * ~here).sum(axis=1, keepdims=True)
    shares: FloatArray = held * (home + near * inside + elsewhere * _taken(chance, held))
    return shares


def _taken(chance: FloatArray, held: np.ndarray) -> FloatArray:
    """q of the replicas along the last axis. chance: 0 where none is held."""
    r = np.maximum(held.sum(axis=-1, keepdims=True), 1)
    others = (chance.sum(axis=-1, keepdims=True) - chance) / np.maximum(r - 1, 1)
    raw = chance * joined(others, r) + (1 - chance) * (1 - others) ** (r - 1) / r
    raw = np.where(held, raw, 0.0)
    q: FloatArray = raw / np.maximum(raw.sum(axis=-1, keepdims=True), 1e-300)
    return q
