"""Where tokens go: fan-out, hops and the flows between GPUs, expected or measured.

Definitions as in docs/metrics.md. A token's home is the data-parallel rank of its request; in a
trace, each sequence in turn goes to the GPU with the fewest tokens, as a load balancer would.
"""

from dataclasses import dataclass

import numpy as np

from placer.arrays import BoolArray, FloatArray, IntArray, pair_sums
from placer.cost.coherent import Owners
from placer.cost.homes import homes
from placer.cost.serving import LayerMap, serve, token_hash
from placer.cost.sharing import shares
from placer.cost.visits import Visits, own_places, visits
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

    The chance that a token visits a GPU follows from loads and co-activations (visits.py); without
    co-activations experts count as independent and fan-out is not reported. Under ``coherent`` see
    coherent.py.

    only_timed: leave out, as not known, what a step's time does not depend on
    """
    tokens, gpus, nodes = profile.tokens, placement.gpus, placement.nodes
    known = profile.coactivation is not None
    transitions = profile.transitions if profile.layers > 1 else None
    served = shares(profile, placement, dispatch)
    if dispatch == "allgather" and (only_timed or not known):  # every token goes everywhere
        known = False
        sent = Flow(np.zeros((profile.layers, gpus, gpus)), np.zeros((profile.layers, gpus, nodes)))
        back = sent
    else:
        by_level = [visits(profile, placement, places, dispatch) for places in (gpus, nodes)]
        from_home = [_from_home(tokens, gpus, *kinds) for kinds in by_level]
        sent = back = Flow(*from_home)
        if dispatch == "coherent" and transitions is not None:
            owners = Owners(profile, transitions, placement, served)
            flows = [owners.flows(*level) for level in zip(from_home, by_level, strict=True)]
            sent, back = (Flow(*levels) for levels in zip(*flows, strict=True))
    hops = None
    if transitions is not None and not only_timed:
        hops = _hops(transitions, profile.top_k, placement, dispatch) / tokens
    return Traffic(
        tokens=tokens,
        served=np.einsum("le,leg->lg", profile.load, served),
        dispatch=sent,
        combine=back,
        fanout_gpus=sent.gpu.sum(axis=(1, 2)) / tokens if known else None,
        fanout_nodes=sent.node.sum(axis=(1, 2)) / tokens if known else None,
        hops=hops,
    )


def _from_home(tokens: float, gpus: int, at_home: Visits, away: Visits) -> FloatArray:
    """[layers, owners, places] tokens of each GPU that visit each place."""
    own = own_places(gpus, at_home.mean.shape[1])
    chance = np.where(own, at_home.chance()[:, None], away.chance()[:, None])
    flow: FloatArray = tokens / gpus * chance
    return flow


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
