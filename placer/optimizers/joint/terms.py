"""A problem in the numbers that the search of ``joint`` works with."""

import numpy as np
import numpy.typing as npt

from placer.arrays import BoolArray, FloatArray, IntArray
from placer.cost import compute, links, moves, outlook, steps
from placer.cost.homes import homes as least_loaded
from placer.cost.owned import Kinds
from placer.cost.sharing import away, joined, owners, shares
from placer.optimizers.joint.search import CHANCE, Layer, Rules, settle
from placer.problem import Problem

ROUNDING = 1e-9  # of shares
NO_STEP = 1e-9  # instead of a horizon without steps, in which nothing pays
RECORDINGS = 2  # whose noise counts: the one planned from, and one as long in the time to come


def is_coherent(problem: Problem) -> bool:
    """Whether it matters where tokens come from, and is known."""
    known = problem.profile.transitions is not None and problem.profile.layers > 1
    return problem.objective.dispatch == "coherent" and known


def rules(problem: Problem, layers: list[Layer] | None = None) -> Rules:
    """Of a problem; for ``layers`` that know where tokens' homes are, ``leaving`` counts."""
    topology, objective = problem.topology, problem.objective
    gpus, nodes, size = topology.gpus, topology.nodes, topology.gpus_per_node
    visit_s = node_visit_s = latency_s = node_latency_s = 0.0
    if objective.dispatch != "allgather":
        tokens, model = objective.tokens_per_gpu * gpus, problem.model
        there_and_back = tokens * (model.dispatch_bytes + model.combine_bytes)
        visit_s = there_and_back * (size - 1) / size / links.local_rate(topology)
        node_visit_s = there_and_back * (nodes - 1) / gpus / topology.network.bytes_per_s
        latency_s = 2 * topology.local.latency_s * (size > 1)
        node_latency_s = 2 * topology.network.latency_s * (nodes > 1)
    owned, owned_node = _most_owned(problem)
    most = np.arange(most_replicas(problem) + 2)
    by_level = [away(most, places, objective.dispatch) for places in (gpus, nodes)]
    share, colocated = (np.stack(tables) for tables in zip(*by_level, strict=True))
    return Rules(
        nodes=nodes,
        top_k=problem.model.top_k,
        visit_s=visit_s,
        node_visit_s=node_visit_s,
        latency_s=latency_s,
        node_latency_s=node_latency_s,
        overlap=objective.overlap,
        owned=owned,
        owned_node=owned_node,
        slowest=outlook.slowest(gpus),
        slowest_node=outlook.slowest(nodes),
        coherent=is_coherent(problem) or bool(layers and len(layers[0].visitors)),
        by_rule=objective.dispatch != "allgather" and problem.slots > problem.model.experts,
        keep_nodes=objective.keep_groups and nodes > 1,
        two_nodes=objective.survive_node,
        hedged=problem.profile.unknown is not None,
        share=share,
        colocated=colocated,
    )


def _most_owned(problem: Problem) -> tuple[float, float]:
    """Tokens of the place in all nodes, and of the GPU, that own most, over their means, as the
    score has them; 1 where that is not known: without a trace, if it has no request for some GPU,
    of traffic to come. ``coherent`` tokens have other owners after every layer.
    """
    trace, topology = problem.trace, problem.topology
    gpus = topology.gpus
    if trace is None or len(trace.seq_lens) < gpus or not trace.tokens:
        return 1.0, 1.0
    if is_coherent(problem) or problem.profile.unknown is not None:
        return 1.0, 1.0
    owned = np.bincount(least_loaded(trace.seq_lens, gpus), trace.seq_lens, gpus)
    places = owned.reshape(topology.nodes, -1).sum(axis=0)
    return float(places.max() / places.mean()), float(owned.max() / owned.mean())


def most_replicas(problem: Problem) -> int:
    """The most GPUs that can hold one expert."""
    return min(problem.topology.gpus, problem.slots - problem.model.experts + 1)


def layers(problem: Problem) -> list[Layer]:
    """What each layer's traffic costs, wherever its tokens come from and its experts are now."""
    profile = problem.profile
    experts, none = profile.experts, np.zeros((profile.layers, 0, 0))
    use = profile.load / profile.tokens
    if problem.objective.dispatch == "allgather":
        pairs = none
    elif profile.coactivation is None:
        pairs = use[:, :, None] * use[:, None, :] * (1 - np.eye(experts))
    else:
        pairs = profile.coactivation / profile.tokens
    arithmetic, reading = compute.replica_seconds(problem, most_replicas(problem) + 1)
    by_reading = reading[:, :, 1].sum(axis=1) > arithmetic.sum(axis=1)
    slope = np.where(by_reading[:, None], *reversed(compute.slopes(problem)))
    noises = [(RECORDINGS, profile.noise)]
    if profile.unknown is not None:
        noises.append((1, profile.unknown))
    risk = sum(times * noise.variance for times, noise in noises) * slope**2
    known = [(times, noise.covariance) for times, noise in noises if noise.covariance is not None]

    def together(at: int) -> FloatArray:
        if not known:
            return none[at]
        covariance = sum(times * covariance[at] for times, covariance in known)
        return covariance * slope[at][:, None] * slope[at]

    owning = np.zeros((profile.layers, 0))
    if is_coherent(problem):
        owning = use / profile.top_k * problem.topology.gpus
    nowhere = np.zeros((experts, problem.topology.gpus))
    return [
        Layer(
            use=use[at],
            pairs=pairs[at],
            risk=risk[at],
            together=together(at),
            arithmetic=arithmetic[at],
            reading=reading[at],
            standing=nowhere,
            leaving=nowhere,
            owners=nowhere[:0],
            owning=owning[at],
            visitors=np.zeros((0, experts)),
            visiting=np.zeros((0, experts, experts), dtype=np.float32),
        )
        for at in range(profile.layers)
    ]


def with_homes(
    problem: Problem, layers: list[Layer], kinds: Kinds, homes: FloatArray
) -> list[Layer]:
    """``layers`` with the tokens that visit each place if their clusters' homes are these.

    homes: [clusters, gpus] share of each cluster that each GPU owns

    Of an expert with r replicas on R that tokens at home on h use with the chance U_h, of all, the
    replicas serve sum(U_h, h not in R) elsewhere. The search reckons for each of them, on g, with
    sum(U_h, h not g) * share[r]. What lacks is -(1 - 1/r) * (U_g - U/G) a replica, of which a part
    visits its GPU anyway: ``standing``, and ``leaving`` for what goes with 1/r.
    """
    visitors, visiting = _visitors(problem, kinds, homes)
    gpus, model = problem.topology.gpus, problem.model
    owned = kinds.owned(homes)[1]
    visits = (1 - (1 - 1 / gpus) ** model.top_k) / (model.top_k / gpus)  # an activation, roughly
    saved_s = rules(problem).visit_s / gpus * visits * (gpus / max(gpus - 1, 1)) ** 2
    made = []
    for at, layer in enumerate(layers):
        layer = layer._replace(visitors=visitors[at], visiting=visiting[at])
        if problem.slots > model.experts:
            saved = saved_s * (owned[:, at] - layer.use / gpus).T
            # Slots are never empty: what all would cost alike is left out.
            standing = np.ascontiguousarray(layer.standing - saved + saved.min())
            leaving = np.ascontiguousarray(layer.leaving - saved)
            layer = layer._replace(standing=standing, leaving=leaving)
        made.append(layer)
    return made


def _visitors(
    problem: Problem, kinds: Kinds, homes: FloatArray
) -> tuple[FloatArray, npt.NDArray[np.float32]]:
    """Layer.visitors [layers, places, experts] and Layer.visiting, of all layers.

    Local links carry what comes from owners in another place of a node than the GPU's, and the
    network what comes from other nodes.
    """
    topology, size = problem.topology, problem.topology.gpus_per_node
    place, node = np.arange(topology.gpus) % size, topology.node_of
    share, owned = kinds.owned(homes)
    groups = size + topology.nodes  # of owners: by place, by node
    tokens, use = np.zeros(groups), np.zeros((groups, *owned.shape[1:]))
    pairs = np.zeros((groups, *kinds.together.shape))
    for owner in range(topology.gpus):
        both = kinds.pairs(homes[:, owner])
        for group in (place[owner], size + node[owner]):
            tokens[group] += share[owner]
            use[group] += owned[owner]
            pairs[group] += both
    at = place if topology.nodes == 1 else np.append(place, size + np.arange(topology.nodes))
    rest = 1 - tokens[at]
    scale = np.divide(1.0, rest, out=np.zeros_like(rest), where=rest > ROUNDING)
    layers, experts, _ = kinds.together.shape
    visitors = np.empty((layers, len(at), experts))
    visiting = np.empty((layers, len(at), experts, experts), dtype=np.float32)
    all_use, every = use[:size].sum(axis=0), pairs[:size].sum(axis=0)
    for row, (group, one) in enumerate(zip(at, scale, strict=True)):
        visitors[:, row] = np.maximum(all_use - use[group], 0.0) * one
        visiting[:, row] = np.maximum(every - pairs[group], 0.0) * one
    return visitors, visiting


def price(problem: Problem) -> float:
    """Seconds a step for bringing an expert to a GPU where it is not today.

    As over the slowest link, since every copy interrupts serving for a while; all GPUs' links work
    at once, and what they take is spread over the steps of the horizon.
    """
    model, topology = problem.model, problem.topology
    rate = moves.rates(topology)[1 if topology.nodes > 1 else 0]
    count = problem.objective.horizon_s * steps.rate(problem, _step_seconds(problem)).per_s
    return model.expert_bytes / rate / topology.gpus / max(count, NO_STEP)


def _step_seconds(problem: Problem) -> float:
    """Of a step's MoE layers, roughly: GPUs evenly loaded, every token sent everywhere."""
    arithmetic, reading = compute.replica_seconds(problem, 1)
    binding = np.maximum(arithmetic.sum(axis=1), reading[:, :, 1].sum(axis=1))
    experts = float(binding.sum()) / problem.topology.gpus
    tokens = problem.objective.tokens_per_gpu * problem.topology.gpus
    exchange = sum(
        links.allgather_seconds(problem.topology, tokens, size)
        for size in (problem.model.dispatch_bytes, problem.model.combine_bytes)
    )
    return experts + problem.model.layers * exchange


def with_neighbours(problem: Problem, layers: list[Layer], table: IntArray) -> list[Layer]:
    """``layers`` with what is saved by standing where tokens come from and go to, and with where
    they are.

    table: [layers, slots] the experts of the layers beside each
    """
    profile, model, gpus = problem.profile, problem.model, problem.topology.gpus
    transitions = profile.transitions
    assert transitions is not None  # is_coherent
    known, placement = rules(problem, layers), problem.placement(table)
    served = shares(profile, placement, "coherent")
    there = model.dispatch_bytes / (model.dispatch_bytes + model.combine_bytes)
    found = []
    for at, layer in enumerate(layers):
        standing, leaving = layer.standing.copy(), np.zeros_like(layer.leaving)
        levels = (gpus, known.nodes)
        for places, seconds in zip(levels, felt(layer, known, table[at]), strict=False):
            width, held = gpus // places, placement.held_in(places)
            saved = seconds * there / profile.tokens  # dispatch, but not combine
            if at > 0:
                share = served[at - 1].reshape(-1, places, width).sum(axis=2)
                # Visits count tokens as if they were everywhere alike.
                more = transitions[at - 1].T @ (share - 1 / places)
                each = visits_each(layer, held[at], profile.top_k)
                standing -= np.repeat(saved * more * each, width, axis=1)
            if at + 1 < len(layers):
                each = held[at + 1] * visits_each(layers[at + 1], held[at + 1], profile.top_k)
                leaving += np.repeat(saved * transitions[at] @ each, width, axis=1)
        # Slots are never empty: what all would save alike is left out.
        standing -= max(float((standing - layer.standing).max()), 0.0)
        layer = layer._replace(standing=standing, leaving=leaving)
        if known.by_rule:
            layer = layer._replace(owners=owners(profile, served, at))
        found.append(layer)
    return found


def visits_each(layer: Layer, held: BoolArray, top_k: int) -> FloatArray:
    """[experts, places] visits that a transition, 1 / top_k of a token, saves by leading to an
    expert where the token is: its part of the one, which all of the token's experts there share.

    held: [experts, places]
    """
    near = layer.pairs @ held / np.maximum(layer.use, ROUNDING)[:, None]
    return top_k * joined(np.minimum(near / max(top_k - 1, 1), 1.0), np.array(top_k))


def felt(layer: Layer, rules: Rules, row: IntArray) -> list[float]:
    """Seconds a step that a visit less saves, of one a token from elsewhere: to a GPU and, if there
    are several nodes, to a node; where slots hold the experts of ``row``.

    Of both the slower counts. What either takes of that is the derivative of their 4-norm, which is
    their maximum but for where they are alike, and where an exchange may turn them round (norms
    from 3 to 8 end alike).
    """
    gpus = layer.standing.shape[1]
    size = gpus // rules.nodes
    each = [rules.visit_s / gpus * size / max(size - 1, 1)]
    if rules.nodes == 1:
        return each
    each.append(rules.node_visit_s / (rules.nodes - 1))
    visits = settle(layer, rules, row.astype(np.int64)).sums[CHANCE]
    local = visits[:gpus], rules.visit_s, rules.latency_s, rules.slowest
    network = visits[gpus:], rules.node_visit_s, rules.node_latency_s, rules.slowest_node
    takes = [
        (there.mean() + above * there.std()) * visit_s + latency_s
        for there, visit_s, latency_s, above in (local, network)
    ]
    slower = max(sum(seconds**4 for seconds in takes) ** (1 / 4), NO_STEP)
    return [one * (took / slower) ** 3 for one, took in zip(each, takes, strict=True)]
