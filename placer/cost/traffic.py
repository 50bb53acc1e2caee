"""Where tokens go: fan-out, hops and the flows between GPUs, expected or measured.

Definitions as in docs/metrics.md. A token's home is the data-parallel rank of its request; in a
trace, each sequence in turn goes to the GPU with the fewest tokens, as a load balancer would.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from placer.arrays import BoolArray, FloatArray, IntArray
from placer.cost.sharing import away, shares
from placer.cost.serving import LayerMap, serve, token_hash
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
    hops:     GPU changes of a token's top-1 expert, summed over layers, mean over tokens
    """

    tokens: float
    served: FloatArray
    dispatch: Flow
    combine: Flow
    fanout_gpus: FloatArray | None
    fanout_nodes: FloatArray | None
    hops: float | None


def measured(trace: Trace, placement: Placement, dispatch: Dispatch) -> Traffic:
    """Traffic of a trace's tokens, one by one, under the dispatch rule of serving.py."""
    layers, gpus, nodes = placement.layers, placement.gpus, placement.nodes
    node_of = placement.node_of_gpu
    maps = [LayerMap.of(placement, layer) for layer in range(layers)]
    homes = np.repeat(_homes(trace.seq_lens, gpus), trace.seq_lens)
    served = np.zeros((layers, gpus))
    sent = Flow(np.zeros((layers, gpus, gpus)), np.zeros((layers, gpus, nodes)))
    back = Flow(np.zeros_like(sent.gpu), np.zeros_like(sent.node))
    hops = 0
    for start in range(0, trace.tokens, TOKENS_AT_A_TIME):
        part = slice(start, min(start + TOKENS_AT_A_TIME, trace.tokens))
        ids, top1 = trace.expert_ids[part], trace.top1[part]
        rows = np.arange(len(ids))
        hashed = token_hash(np.arange(part.start, part.stop))
        here, last = homes[part], None
        for layer in range(layers):
            origin = None if dispatch == "allgather" else here
            gpu = serve(ids[:, layer].astype(np.intp), maps[layer], hashed, origin, node_of)
            visited: BoolArray = np.zeros((len(ids), gpus), dtype=bool)
            visited[rows[:, None], gpu] = True
            in_node: BoolArray = np.logical_or.reduce(visited.reshape(len(ids), nodes, -1), axis=2)
            main = gpu[rows, top1[:, layer]]
            served[layer] += np.bincount(gpu.ravel(), minlength=gpus)
            hops += 0 if last is None else int((main != last).sum())
            _add(sent, layer, here, visited, in_node)
            last = main
            if dispatch == "coherent":
                here = main
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


def _homes(seq_lens: IntArray, gpus: int) -> IntArray:
    """[sequences] the GPU where each sequence is."""
    waiting = [(0, gpu) for gpu in range(gpus)]
    homes = np.empty(len(seq_lens), dtype=np.intp)
    for sequence, length in enumerate(seq_lens.tolist()):
        tokens, gpu = waiting[0]
        homes[sequence] = gpu
        heapq.heapreplace(waiting, (tokens + length, gpu))
    return homes


def _add(flow: Flow, layer: int, owner: IntArray, visited: BoolArray, in_node: BoolArray) -> None:
    for counts, there in ((flow.gpu[layer], visited), (flow.node[layer], in_node)):
        token, place = np.nonzero(there)
        pair = owner[token] * counts.shape[1] + place
        counts += np.bincount(pair, minlength=counts.size).reshape(counts.shape)


def expected(profile: Profile, placement: Placement, dispatch: Dispatch) -> Traffic:
    """Traffic that a profile predicts: requests' homes are spread evenly, replicas share as in
    sharing.py.

    The chance that a token visits a GPU follows from loads and co-activations (``_visits``);
    without co-activations experts count as independent and fan-out is not reported. Under
    ``coherent`` the top-1 expert follows the transitions and the others are taken as independent
    of where the token was: exact for top-1 models without replicas.
    """
    tokens, gpus, nodes = profile.tokens, placement.gpus, placement.nodes
    copies = placement.copies
    share = copies / np.maximum(copies.sum(axis=2, keepdims=True), 1)
    on_nodes = np.maximum.reduce(copies.reshape(*copies.shape[:2], nodes, -1), axis=3)
    use = profile.load / tokens
    pairs = None if profile.coactivation is None else profile.coactivation / tokens
    visit = _visits(use, pairs, copies, profile.top_k, dispatch)
    node_visit = _visits(use, pairs, on_nodes, profile.top_k, dispatch)
    home = np.eye(gpus), np.repeat(np.eye(nodes), gpus // nodes, axis=0)
    sent = Flow(
        *(
            tokens / gpus * (there * at_home[:, None, :] + (1 - there) * from_away[:, None, :])
            for (at_home, from_away), there in zip((visit, node_visit), home, strict=True)
        )
    )
    back, hops = sent, None
    if profile.transitions is not None and profile.layers > 1:
        follow = _follow(profile.transitions, copies, share)
        hops = float((follow.sum() - np.einsum("lgg->", follow)) / tokens)
        if dispatch == "coherent":
            sent, back = _coherent(
                sent, follow, sent.gpu.sum(axis=1) / tokens, sent.node.sum(axis=1) / tokens
            )
    known = profile.coactivation is not None
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
    use: FloatArray, pairs: FloatArray | None, copies: IntArray, top_k: int, dispatch: Dispatch
) -> tuple[FloatArray, FloatArray]:
    """[layers, places] the chance that a token has at least one expert served in each place: of a
    token whose home it is, and of one from elsewhere.

    use:    [layers, experts] chance of each expert
    pairs:  [layers, experts, experts] chance of each two together; None: as if by chance
    copies: [layers, experts, places]

    Loads give the mean number of a token's experts in a place, co-activations that of pairs of
    them, since a replica follows its company.
    """
    held = copies > 0
    replicas = held.sum(axis=2, keepdims=True)
    share, company = (held * table for table in away(replicas, copies.shape[2], dispatch))

    def chance(share: FloatArray, weight: FloatArray) -> FloatArray:
        mean = np.einsum("le,leg->lg", use, share)
        if pairs is None:
            seen = use[:, :, None] * weight
            both = (seen.sum(axis=1) ** 2 - (seen**2).sum(axis=1)) / 2
        else:
            both = np.einsum("leg,leg->lg", pairs @ weight, weight) / 2
        return visit_chance(mean, both, top_k)

    from_away = chance(share, company)
    if dispatch == "allgather" or replicas.max() <= 1:
        return from_away, from_away
    return chance(held * 1.0, held * 1.0), from_away


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


def _follow(transitions: FloatArray, copies: IntArray, share: FloatArray) -> FloatArray:
    """[layers - 1, gpus, gpus] tokens whose top-1 expert is served on g, then on h.

    A token stays where it is if a replica of its next expert is there.
    """
    leaving = np.einsum("lig,lij->lgj", share[:-1], transitions)
    stays = copies[1:].transpose(0, 2, 1) > 0
    follow: FloatArray = (leaving * ~stays) @ share[1:]
    gpus = np.arange(share.shape[2])
    follow[:, gpus, gpus] += (leaving * stays).sum(axis=2)
    return follow


def _coherent(
    first: Flow, follow: FloatArray, visit: FloatArray, node_visit: FloatArray
) -> tuple[Flow, Flow]:
    """Dispatch from the GPU of the last top-1 expert, and combine into the next one's.

    A token reaches a place with its top-1 expert, or else with one of the others.
    """
    owned = np.concatenate([follow[:1].sum(axis=2), follow.sum(axis=1)])  # [layers, gpus]
    gpus, nodes = owned.shape[1], node_visit.shape[1]
    own_gpu = np.eye(gpus)
    own_node = _by_node(own_gpu, nodes)

    def flows(follow: FloatArray, visit: FloatArray, own: FloatArray) -> list[FloatArray]:
        top1 = owned @ own / owned.sum(axis=1, keepdims=True)
        rest = np.divide(visit - top1, 1 - top1, out=np.zeros_like(visit), where=top1 < 1)
        others = np.clip(rest, 0, 1)[:, None, :]
        sent = follow + (owned[:-1, :, None] - follow) * others[1:]
        return [sent, owned[:, :, None] * np.maximum(others, own)]

    sent, back = flows(follow, visit, own_gpu)
    node_sent, node_back = flows(_by_node(follow, nodes), node_visit, own_node)
    return (
        Flow(np.concatenate([first.gpu[:1], sent]), np.concatenate([first.node[:1], node_sent])),
        Flow(back, node_back),
    )
