"""Where tokens go: fan-out, hops and the flows between GPUs, expected or measured.

Definitions as in docs/metrics.md. A token's home is the data-parallel rank of its request; in a
trace, each sequence in turn goes to the GPU with the fewest tokens, as a load balancer would.
"""

from dataclasses import dataclass

import numpy as np

from placer.arrays import BoolArray, FloatArray, IntArray, pair_sums
from placer.cost.homes import homes
from placer.cost.serving import LayerMap, serve, token_hash
from placer.cost.sharing import away, shares
from placer.objective import Dispatch
from placer.placement import Placement
from placer.profile import Profile
from placer.trace import Trace

TOKENS_AT_A_TIME = 16_384


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """Tokens that an owner GPU exchanges with others, each counted once a GPU and once a node.

    gpu:  [layers, owner, gpus] tokens with an expert served on each GPU
    node: [layers, owner, nodes] tokens with an expert served in each node
    """

    gpu: FloatArray
    node: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """What ``tokens`` tokens did. None is: not known from this input.

    served:   [layers, gpus] activations computed
    dispatch: the owner is the GPU where a token was before the layer
    combine:  the owner is the GPU where it is needed after the layer
    fanout_*: [layers] distinct GPUs or nodes that serve a token, mean over tokens
    hops:     chance that an expert of a token and one of its next layer are served on different
              GPUs, summed over layers, mean over tokens
    """

    tokens: float
    served: FloatArray
    dispatch: Flow
    combine: Flow
    fanout_gpus: FloatArray | None
    fanout_nodes: FloatArray | None
    hops: float | None


def measured(
    trace: Trace, placement: Placement, dispatch: Dispatch, owners: IntArray | None = None
) -> Traffic:
    """Traffic of a trace's tokens, one by one, under the dispatch rule of serving.py.

    owners: [sequences] the GPU of each; None: the least loaded in turn
    """
    layers, gpus, nodes = placement.layers, placement.gpus, placement.nodes
    node_of = placement.node_of_gpu
    maps = [LayerMap.of(placement, layer) for layer in range(layers)]
    own = homes(trace.seq_lens, gpus) if owners is None else owners
    owner = np.repeat(own, trace.seq_lens)
    lots = np.random.default_rng(0)
    served = np.zeros((layers, gpus))
    sent = Flow(np.zeros((layers, gpus, gpus)), np.zeros((layers, gpus, nodes)))
    back = Flow(np.zeros_like(sent.gpu), np.zeros_like(sent.node))
    hops = 0.0
    for start in range(0, trace.tokens, TOKENS_AT_A_TIME):
        part = slice(start, min(start + TOKENS_AT_A_TIME, trace.tokens))
        ids = trace.expert_ids[part]
        rows = np.arange(len(ids))
        hashed = token_hash(np.arange(part.start, part.stop))
        here, last = owner[part], None
        for layer in range(layers):
            origin = None if dispatch == "allgather" else here
            gpu = serve(ids[:, layer].astype(np.intp), maps[layer], hashed, origin, node_of)
            visited: BoolArray = np.zeros((len(ids), gpus), dtype=bool)
            visited[rows[:, None], gpu] = True
            in_node: BoolArray = np.logical_or.reduce(visited.reshape(len(ids), nodes, -1), axis=2)
            cell = (rows[:, None] * gpus + gpu).ravel()
            share = np.bincount(cell, _weights(trace, part, layer).ravel(), visited.size)
            served[layer] += np.bincount(gpu.ravel(), minlength=gpus)
            hops += 0 if last is None else len(ids) - float((share * last).sum())
            _add(sent, layer, here, visited, in_node)
            last = share
            if dispatch == "coherent":
                here = gpu[rows, lots.integers(trace.top_k, size=len(ids))]
                _add(back, layer, here, visited, in_node)
    return Traffic(
        tokens=trace.tokens,
        served=served,
        dispatch=sent,
        combine=back if dispatch == "coherent" else sent,
        fanout_gpus=sent.gpu.sum(axis=(1, 2)) / trace.tokens,
        fanout_nodes=sent.node.sum(axis=(1, 2)) / trace.tokens,
        hops=hops / trace.tokens if layers > 1 else None,
    )


def _weights(trace: Trace, part: slice, layer: int) -> FloatArray:
    """[tokens, top_k] what a token's experts count in its hops: their gates, or all alike."""
    even: FloatArray = np.full(trace.expert_ids[part, layer].shape, 1 / trace.top_k)
    if trace.gates is None:
        return even
    gates = trace.gates[part, layer].astype(np.float64)
    total = gates.sum(axis=1, keepdims=True)
    return np.divide(gates, total, out=even, where=total > 0)


def _add(flow: Flow, layer: int, owner: IntArray, visited: BoolArray, in_node: BoolArray) -> None:
    for counts, there in ((flow.gpu[layer], visited), (flow.node[layer], in_node)):
        token, place = np.nonzero(there)
        pair = owner[token] * counts.shape[1] + place
        counts += np.bincount(pair, minlength=counts.size).reshape(counts.shape)


def expected(
    profile: Profile, placement: Placement, dispatch: Dispatch, only_timed: bool = False
) -> Traffic:
    """Traffic that a profile predicts: requests' homes are spread evenly, replicas share as in
    sharing.py.

    The chance that a token visits a GPU follows from loads and co-activations (``_visits``);
    without co-activations experts count as independent and fan-out is not reported. Under
    ``coherent`` see ``_coherent``.

    only_timed: leave out, as not known, what a step's time does not depend on
    """
    tokens, gpus, nodes = profile.tokens, placement.gpus, placement.nodes
    known = profile.coactivation is not None
    if dispatch == "allgather" and (only_timed or not known):  # every token goes everywhere
        known = False
        sent = Flow(np.zeros((profile.layers, gpus, gpus)), np.zeros((profile.layers, gpus, nodes)))
    else:
        visit = _visits(profile, placement, gpus, dispatch)
        node_visit = _visits(profile, placement, nodes, dispatch)
        home = np.eye(gpus), np.repeat(np.eye(nodes), gpus // nodes, axis=0)
        sent = Flow(
            *(
                tokens / gpus * (there * at_home[:, None, :] + (1 - there) * from_away[:, None, :])
                for (at_home, from_away), there in zip((visit, node_visit), home, strict=True)
            )
        )
    back, hops = sent, None
    if profile.transitions is not None and profile.layers > 1:
        if not only_timed:
            hops = _hops(profile.transitions, profile.top_k, placement, dispatch) / tokens
        if dispatch == "coherent":
            copies = placement.copies
            share = copies / np.maximum(copies.sum(axis=2, keepdims=True), 1)
            follow = _follow(profile.transitions, share)
            sent, back = _coherent(sent, follow, _cross(profile, share))
    return Traffic(
        tokens=tokens,
        served=np.einsum("le,leg->lg", profile.load, shares(profile, placement, dispatch)),
        dispatch=sent,
        combine=back,
        fanout_gpus=sent.gpu.sum(axis=(1, 2)) / tokens if known else None,
        fanout_nodes=sent.node.sum(axis=(1, 2)) / tokens if known else None,
        hops=hops,
    )


def _by_node(per_gpu: FloatArray, nodes: int) -> FloatArray:
    """Sums [..., gpus] over each node's GPUs: [..., nodes]."""
    summed: FloatArray = per_gpu.reshape(*per_gpu.shape[:-1], nodes, -1).sum(axis=-1)
    return summed


def _visits(
    profile: Profile, placement: Placement, places: int, dispatch: Dispatch
) -> tuple[FloatArray, FloatArray]:
    """[layers, places] the chance that a token has at least one expert served in each place, GPUs
    or nodes: of a token whose home it is, and of one from elsewhere.

    Loads give the mean number of a token's experts in a place, co-activations that of pairs of
    them, since a replica goes by co-location; without co-activations as if by chance.
    """
    experts, _, first = placement.content(places)
    replicas = placement.held_in(places).sum(axis=2)
    layer = np.arange(profile.layers)[:, None, None]
    use = (profile.load / profile.tokens)[layer, experts]
    served, colocated = away(replicas[layer, experts], places, dispatch)

    def chance(share: FloatArray, weight: FloatArray) -> FloatArray:
        mean = (use * share).sum(axis=2)
        if profile.coactivation is None:
            seen = use * weight
            both = (seen.sum(axis=2) ** 2 - (seen**2).sum(axis=2)) / 2
        else:
            there = experts, weight
            both = pair_sums(profile.coactivation, there, there) / (2 * profile.tokens)
        return visit_chance(mean, both, profile.top_k)

    from_away = chance(first * served, first * colocated)
    if dispatch == "allgather" or replicas.max() <= 1:
        return from_away, from_away
    held = first.astype(np.float64)
    return chance(held, held), from_away


def visit_chance(mean: FloatArray, pairs: FloatArray, top_k: int) -> FloatArray:
    """Chance that a token has any of its experts in a place.

    mean:  mean number of its experts there
    pairs: mean number of pairs of them

    One minus the zero class of the beta-binomial law with these two moments (with the
    hypergeometric as its under-dispersed side): exact for top-2.
    """
    share = mean / top_k
    if top_k == 1:
        return share
    both = pairs / (top_k * (top_k - 1) / 2)
    again = np.divide(both, share, out=np.zeros_like(share), where=share > 0)
    spread = np.divide(again - share, 1 - again, out=np.zeros_like(share), where=again < 1)
    step = np.arange(top_k).reshape(-1, *[1] * share.ndim)
    of = 1 + step * spread
    none = np.divide(1 - share + step * spread, of, out=np.zeros_like(of), where=of > 0)
    chance: FloatArray = np.where(again < 1, 1 - np.clip(none, 0, 1).prod(axis=0), share)
    return chance


def _hops(transitions: FloatArray, top_k: int, placement: Placement, dispatch: Dispatch) -> float:
    """Transitions between experts that are served on different GPUs.

    Under ``coherent`` a token stays where one of its experts is, and replicas follow that one.
    """
    experts, used, first = placement.content(placement.gpus)
    layer = np.arange(placement.layers)[:, None, None]
    share = used / np.maximum(placement.replicas, 1)[layer, experts]
    after = share + (first - share) / top_k if dispatch == "coherent" else share
    stay = pair_sums(transitions, (experts[:-1], share[:-1]), (experts[1:], after[1:]))
    return max(float(transitions.sum() - stay.sum()), 0.0)


def _follow(transitions: FloatArray, share: FloatArray) -> FloatArray:
    """[layers - 1, gpus, gpus] tokens of which an expert is served on g, and one then on h: on g,
    too, if a replica is there.

    share: [layers, experts, gpus] of each expert's tokens that each GPU serves, if all do alike
    """
    leaving = share[:-1].transpose(0, 2, 1) @ transitions
    stays = share[1:].transpose(0, 2, 1) > 0
    follow: FloatArray = (leaving * ~stays) @ share[1:]
    gpus = np.arange(share.shape[2])
    follow[:, gpus, gpus] += (leaving * stays).sum(axis=2)
    return follow


def _cross(profile: Profile, share: FloatArray) -> FloatArray:
    """[layers, gpus, gpus] mean number of pairs of a token's experts, one served on g, one on h."""
    if profile.coactivation is not None:
        return share.transpose(0, 2, 1) @ profile.coactivation @ share / profile.tokens
    mean = np.einsum("le,leg->lg", profile.load / profile.tokens, share)
    return mean[:, :, None] * mean[:, None, :] * (1 - 1 / profile.top_k)


def _coherent(first: Flow, follow: FloatArray, cross: FloatArray) -> tuple[Flow, Flow]:
    """Dispatch from the GPU where a token stayed after the layer before, and combine into the one
    where it stays next: where one of its experts was served, each as likely.

    first:  dispatch from home, which says how many tokens visit each GPU and node
    follow: [layers - 1, gpus, gpus] from ``_follow``
    cross:  [layers, gpus, gpus] from ``_cross``

    The tokens that visit a place come from the GPUs in the proportion of the pairs of experts that
    they have there and here: exact for top-1, and for the combine of top-2, without replicas.
    """
    owned = np.concatenate([follow[:1].sum(axis=2), follow.sum(axis=1)])  # [layers, gpus]
    gpus, nodes = owned.shape[1], first.node.shape[2]

    def flows(
        begin: FloatArray, follow: FloatArray, cross: FloatArray, own: FloatArray
    ) -> list[FloatArray]:
        visits = begin.sum(axis=1)
        others = np.maximum(visits - owned @ own, 0.0)
        sent = np.concatenate([begin[:1], _split(visits[1:], follow)])
        return [sent, owned[:, :, None] * own + _split(others, cross * (1 - own))]

    own = np.eye(gpus)
    sent, back = flows(first.gpu, follow, cross, own)
    by_node = (_by_node(each, nodes) for each in (follow, cross, own))
    node_sent, node_back = flows(first.node, *by_node)
    return Flow(sent, node_sent), Flow(back, node_back)


def _split(visits: FloatArray, weight: FloatArray) -> FloatArray:
    """[layers, owners, places] ``visits`` [layers, places] by ``weight`` of the owners."""
    total = weight.sum(axis=1, keepdims=True)
    share = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
    return share * visits[:, None, :]
