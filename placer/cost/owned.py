"""Traffic that a profile with clusters predicts where requests' homes are chosen.

A cluster's tokens use its experts as it says; its share of the tokens that use both i and j is as
if they used each by itself (naive Bayes), of the co-activations of all traffic C:

    C_c[i, j] = C[i, j] * t_c u_c[i] u_c[j] / sum_d t_d u_d[i] u_d[j]

t_c tokens of cluster c, u_c[i] the chance that one of them uses i. So the clusters' loads and
co-activations add up to the profile's, although clusters may be of a part of the requests.

A token finds an expert that stands at its home there; the others it visits as in sharing.py. The
chance that it visits a place is ``visit_chance``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placer.arrays import BoolArray, FloatArray, IntArray
from placer.cost.homes import chosen, shared
from placer.cost.sharing import shares
from placer.cost.traffic import Flow, Traffic
from placer.cost.traffic import expected as expected_traffic
from placer.cost.visits import visit_chance
from placer.placement import Placement
from placer.profile import Profile
from placer.tables import Vocabulary, token_identity
from placer.trace import Trace


@dataclass(frozen=True, slots=True, eq=False)
class Kinds:
    """Tokens by cluster.

    share:    [clusters] of all tokens
    use:      [clusters, layers, experts] chance that one of the cluster's tokens uses the expert
    together: [layers, experts, experts] C / sum over clusters of t u u, of a token; zero diagonal
    """

    share: FloatArray
    use: FloatArray
    together: FloatArray
    top_k: int

    @classmethod
    def of(cls, profile: Profile) -> "Kinds":
        clusters = profile.clusters
        assert clusters is not None  # only asked of profiles that have some
        share = clusters.tokens / clusters.tokens.sum()
        known, all_of_it = clusters.load.sum(axis=0), share[:, None, None]
        part = np.divide(clusters.load, known, out=all_of_it + 0 * clusters.load, where=known > 0)
        use = np.minimum(part * (profile.load / profile.tokens) / all_of_it, 1.0)
        alone = _products(use, share)  # as if clusters used experts each by itself
        if profile.coactivation is None:
            together = np.broadcast_to(1 - np.eye(profile.experts), alone.shape)
        else:
            pairs = profile.coactivation / profile.tokens
            together = np.divide(pairs, alone, out=np.zeros_like(alone), where=alone > 0)
        return cls(share, use, together, profile.top_k)

    def owned(self, homes: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What each GPU owns: [gpus] share of the tokens, [gpus, layers, experts] chance that a
        token of all is its and uses the expert. homes: [clusters, gpus] share of each cluster."""
        weight = homes * self.share[:, None]
        return weight.sum(axis=0), np.einsum("cg,cle->gle", weight, self.use, optimize=True)

    def pairs(self, homes: FloatArray) -> FloatArray:
        """[layers, experts, experts] chance that a token of all is of one GPU and uses both.
        homes: [clusters] share of each that it owns"""
        pairs: FloatArray = _products(self.use, homes * self.share) * self.together
        return pairs

    def visits(self, held: BoolArray) -> FloatArray:
        """[clusters, layers, gpus] chance that one of a cluster's tokens has an expert on each GPU.
        held: [layers, experts, gpus]"""
        found = np.empty((len(self.share), *held.shape[::2]))
        for layer, here in enumerate(held):
            there = self.use[:, layer, :, None] * here
            both = (np.matmul(self.together[layer], there) * there).sum(axis=1) / 2
            found[:, layer] = visit_chance(there.sum(axis=1), both, self.top_k)
        return found


def _products(use: FloatArray, weight: FloatArray) -> FloatArray:
    """[layers, experts, experts] sum over clusters of weight * use * use."""
    by_layer = use.transpose(1, 0, 2)
    products: FloatArray = (by_layer * weight[:, None]).transpose(0, 2, 1) @ by_layer
    return products


def expected(profile: Profile, placement: Placement, homes: FloatArray) -> Traffic:
    """Traffic under ``dedup`` if each GPU owns these shares of each cluster, [clusters, gpus]."""
    kinds, tokens = Kinds.of(profile), profile.tokens
    share, owned = kinds.owned(homes)
    gpus, nodes, layers = placement.gpus, placement.nodes, profile.layers
    held = placement.held_in(gpus)
    sent = Flow(np.zeros((layers, gpus, gpus)), np.zeros((layers, gpus, nodes)))
    served = np.zeros((layers, gpus))
    levels = [(gpus, sent.gpu, held), (nodes, sent.node, placement.held_in(nodes))]
    replicas = np.maximum(held.sum(axis=2, keepdims=True), 1)
    even = shares(profile, placement, "dedup") - held / gpus
    left = 1 - replicas / gpus
    # Of tokens that find no replica at home.
    from_away = np.divide(even, left, out=np.zeros_like(even), where=left > 0)
    for gpu in range(gpus):
        if share[gpu] <= 0:
            continue
        use, pairs = owned[gpu] / share[gpu], kinds.pairs(homes[:, gpu]) / share[gpu]
        for places, flow, there in levels:
            home = gpu * places // gpus
            served_there, colocated = _from(there, home)
            mean = (use[:, None] @ served_there)[:, 0]
            both = ((pairs @ colocated) * colocated).sum(axis=1) / 2
            flow[:, gpu] = visit_chance(mean, both, profile.top_k) * tokens * share[gpu]
        at_home = held[:, :, gpu]
        away = owned[gpu] * ~at_home
        served += tokens * (away[:, None] @ from_away)[:, 0]
        served[:, gpu] += tokens * (owned[gpu] * at_home).sum(axis=1)
    return Traffic(
        tokens=tokens,
        served=served,
        dispatch=sent,
        combine=sent,
        fanout_gpus=sent.gpu.sum(axis=(1, 2)) / tokens,
        fanout_nodes=sent.node.sum(axis=(1, 2)) / tokens,
        hops=None,
    )


def kept(trace: Trace, placement: Placement) -> FloatArray:
    """[sequences, gpus] visits of a trace's tokens, over all layers, that stay at home if that is
    the sequence's GPU: of those tokens that have an expert there."""
    return _by_sequence(_kept(trace, placement), trace.seq_lens)


def _kept(trace: Trace, placement: Placement) -> FloatArray:
    """[tokens, gpus]"""
    held, found = placement.held_in(placement.gpus), np.zeros((trace.tokens, placement.gpus))
    for layer in range(trace.layers):
        found += held[layer][trace.expert_ids[:, layer]].any(axis=1)
    return found


def _by_sequence(of_tokens: FloatArray, seq_lens: IntArray) -> FloatArray:
    found: FloatArray = np.add.reduceat(of_tokens, np.cumsum(seq_lens) - seq_lens, axis=0)
    return found


def foreseen(
    known: Trace, placement: Placement, tokens: IntArray, seq_lens: IntArray
) -> FloatArray:
    """[sequences, gpus] the same of sequences that did not run yet: each token as ``known``'s
    tokens like it, or as all of them if there is none.

    tokens: identities (``tables.token_identity``), sequence after sequence; seq_lens: [sequences]
    """
    found, kind, times = np.unique(token_identity(known), return_inverse=True, return_counts=True)
    vocabulary = Vocabulary(found, np.arange(len(found)))
    one_by_one = _kept(known, placement)
    rows = np.zeros((len(found) + 1, placement.gpus))
    np.add.at(rows, kind, one_by_one)
    rows[:-1] /= times[:, None]
    rows[-1] = one_by_one.mean(axis=0)
    return _by_sequence(rows[vocabulary.rows(tokens)], seq_lens)


def cluster_homes(profile: Profile, placement: Placement) -> FloatArray:
    """[clusters, gpus] share of each of the profile's clusters that each GPU owns, so that all own
    as many tokens and most visits stay at home."""
    assert profile.clusters is not None
    kinds = Kinds.of(profile)
    visits = kinds.visits(placement.held_in(placement.gpus)).sum(axis=1)
    return shared(visits * kinds.share[:, None], kinds.share)


def scheduled(profile: Profile, placement: Placement, trace: Trace | None) -> npt.NDArray[Any]:
    """The homes that a scheduler gives the trace's sequences if it knows where their experts are,
    [sequences]; or the profile's clusters, as ``cluster_homes``."""
    if trace is None:
        return cluster_homes(profile, placement)
    return chosen(kept(trace, placement), trace.seq_lens, peak(profile, placement))


def peak(profile: Profile, placement: Placement) -> float:
    """Visits to the GPU that is visited most in each layer, over their mean."""
    visits = expected_traffic(profile, placement, "dedup", True).dispatch.gpu.sum(axis=1)
    return float(visits.max(axis=1).sum() / visits.mean(axis=1).sum())


def _from(held: BoolArray, home: int) -> tuple[FloatArray, FloatArray]:
    """[layers, experts, places] of a token at home in one place: the share of its experts' tokens
    that each place serves, and the chance that it serves one that visits it anyway (sharing.away).
    """
    replicas = np.maximum(held.sum(axis=2, keepdims=True), 1)
    missing = ~held[:, :, home, None] & held
    served, colocated = missing / replicas, missing * 4 / (replicas + 3)
    served[:, :, home] = colocated[:, :, home] = held[:, :, home]
    return served, colocated
