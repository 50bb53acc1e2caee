"""One layer in the search of ``joint``, and what an exchange would do to it; compiled by Numba.

A *place* is a GPU or, after the GPUs, a node. Of each place the state knows the first two moments
of "how many of a token's experts are here", from which the chance of a visit follows, and of each
GPU also the seconds of its experts with their variance. An exchange changes the weights of at most
two experts on a few places; what it would cost follows from those, the others are not looked at.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

from placer.arrays import FloatArray, IntArray

# Rows of State.sums: of each place, the mean number of a token's experts, of pairs of them, the
# chance of a visit, and the seconds of its experts with their variance.
MEAN, PAIRS, CHANCE, SECONDS, VARIANCE = range(5)
# Rows of State.change: by how much an exchange changes the weights of the two experts.
COMPANY_E, COMPANY_F, SHARE_E, SHARE_F = range(4)


compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
inlined = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")

Totals = tuple[float, float, float, float, float]
# (x, y, f): slot x gets expert f, and slot y, unless it is -1, the expert of x.
Exchange = tuple[int, int, int]


class Layer(NamedTuple):
    """What traffic does in one layer. E experts, G GPUs, R one more than the most replicas.

    use:      [E] chance that a token uses the expert
    pairs:    [E, E] chance that it uses both, zero diagonal; empty if visits cost nothing
    risk:     [E] variance of the expert's seconds in the traffic to come, s^2
    together: [E, E] their covariance, zero diagonal; empty if experts vary by themselves
    seconds:  [E, R] seconds that each of r replicas costs its GPU in a step
    standing: [E, G] seconds a step for the expert's being on the GPU: the price of bringing it
              there, less what is saved by its being where its tokens come from
    leaving:  [E, G] seconds saved a step by an expert, over r, that is where its tokens go next
    """

    use: FloatArray
    pairs: FloatArray
    risk: FloatArray
    together: FloatArray
    seconds: FloatArray
    standing: FloatArray
    leaving: FloatArray


class Rules(NamedTuple):
    """What holds in every layer.

    visit_s, node_visit_s: seconds a step of one GPU and one node more that every token visits
    slowest:    how many standard deviations the slowest of the GPUs is above their mean
    coherent:   whether ``leaving`` counts
    keep_nodes: whether experts must stay on the nodes where they are
    two_nodes:  whether every expert must be on two nodes
    company:    [2, R] on GPUs and on nodes: the chance that one of r replicas serves a token that
                is there anyway
    """

    nodes: int
    top_k: int
    visit_s: float
    node_visit_s: float
    slowest: float
    coherent: bool
    keep_nodes: bool
    two_nodes: bool
    company: FloatArray


class State(NamedTuple):
    """Where experts are. S slots, P places, of which the first G are GPUs.

    slots:    [S] the expert of each
    replicas: [2, E] GPUs and nodes that hold each expert
    held:     [P, E] slots of each place that hold each expert
    company:  [P, E] mean number of the place's experts that a token uses together with the expert
    danger:   [G, E] covariance of each expert's seconds with each GPU's
    sums:     [5, P] of each place (MEAN, ...)
    totals:   [5] over places: seconds, their squares, their variances, GPU and node visits
    touched:  [P] the places that the exchange weighed last would change, and how many (last)
    weighed:  [5, P] their sums, and
    change:   [4, P] the change of the two experts' weights (COMPANY_E, ...)
    """

    slots: IntArray
    replicas: IntArray
    held: IntArray
    company: FloatArray
    danger: FloatArray
    sums: FloatArray
    totals: FloatArray
    touched: IntArray
    weighed: FloatArray
    change: FloatArray


@inlined
def visit_chance(mean: float, pairs: float, top_k: int) -> float:
    """``traffic.visit_chance`` of one place."""
    share = mean / top_k
    if share <= 0.0 or top_k == 1:
        return max(share, 0.0)
    again = pairs / (top_k * (top_k - 1) / 2) / share
    if again >= 1.0:
        return share
    spread = (again - share) / (1.0 - again)
    none, of = 1.0, 1.0
    for step in range(top_k):
        none *= max(1.0 - share + step * spread, 0.0)
        of *= 1.0 + step * spread
    return 1.0 - none / of if of > 0.0 else 1.0


@inlined
def step_seconds(rules: Rules, totals: Totals, gpus: int) -> float:
    """Seconds of a step: the slowest GPU's experts, as expected, and the slower links."""
    mean = totals[0] / gpus
    variance = totals[1] / gpus - mean * mean + totals[2] / gpus
    local, network = totals[3] * rules.visit_s, totals[4] * rules.node_visit_s
    # A tenth of the faster links, too, so that they are not filled for nothing.
    links = max(local, network) + 0.1 * min(local, network)
    return mean + rules.slowest * math.sqrt(max(variance, 0.0)) + links


@inlined
def weigh(layer: Layer, rules: Rules, state: State, exchange: Exchange) -> float:
    """Seconds a step that an exchange costs (or saves, below zero)."""
    x, y, f = exchange
    e = state.slots[x]
    gpus = layer.standing.shape[1]
    size, per_node = state.slots.shape[0] // gpus, gpus // rules.nodes
    totals = (state.totals[0], state.totals[1], state.totals[2], state.totals[3], state.totals[4])
    seconds, squares, noise, visits, node_visits = totals
    linear, count = 0.0, 0
    for level in range(2 if rules.nodes > 1 else 1):
        first = gpus * level
        width = size if level == 0 else size * per_node
        to = first + x // width
        back = first + y // width if y >= 0 else -1
        if to == back:
            continue  # both stay in the node
        e0, f0 = state.replicas[level, e], state.replicas[level, f]
        e1 = e0 - int(state.held[to, e] == 1)
        f1 = f0 + int(state.held[to, f] == 0)
        if back >= 0:
            e1 += int(state.held[back, e] == 0)
            f1 -= int(state.held[back, f] == 1)
        if level == 1 and rules.two_nodes and (e1 < 2 or f1 < 2):
            return math.inf
        spread = e1 != e0 or f1 != f0
        for index in range((gpus if level == 0 else rules.nodes) if spread else 2):
            k = first + index if spread else (to if index == 0 else back)
            into = int(k == to) - int(k == back)
            has_e, has_f = state.held[k, e], state.held[k, f]
            if into == 0 and has_e == 0 and has_f == 0:
                continue
            e_was, e_is = int(has_e > 0), int(has_e - into > 0)
            f_was, f_is = int(has_f > 0), int(has_f + into > 0)
            share_e, share_f = e_is / e1 - e_was / e0, f_is / f1 - f_was / f0
            company_e = e_is * rules.company[level, e1] - e_was * rules.company[level, e0]
            company_f = f_is * rules.company[level, f1] - f_was * rules.company[level, f0]
            mean, pairs, chance = 0.0, 0.0, 0.0
            if len(layer.pairs):
                mean = state.sums[MEAN, k] + layer.use[e] * share_e + layer.use[f] * share_f
                pairs = state.sums[PAIRS, k] + company_e * state.company[k, e]
                pairs += company_f * (state.company[k, f] + company_e * layer.pairs[e, f])
                chance = visit_chance(mean, pairs, rules.top_k)
            state.touched[count] = k
            count += 1
            state.change[COMPANY_E, k] = company_e
            state.change[COMPANY_F, k] = company_f
            state.change[SHARE_E, k] = share_e
            state.change[SHARE_F, k] = share_f
            state.weighed[MEAN, k] = mean
            state.weighed[PAIRS, k] = pairs
            state.weighed[CHANCE, k] = chance
            if level == 1:
                node_visits += chance - state.sums[CHANCE, k]
                continue
            visits += chance - state.sums[CHANCE, k]
            more = e_is * layer.seconds[e, e1] - e_was * layer.seconds[e, e0]
            more += f_is * layer.seconds[f, f1] - f_was * layer.seconds[f, f0]
            state.weighed[SECONDS, k] = state.sums[SECONDS, k] + more
            seconds += more
            squares += more * (2 * state.sums[SECONDS, k] + more)
            # Squares of the weights before and after; no GPU holds an expert twice.
            risk = (e_is / e1**2 - e_was / e0**2) * layer.risk[e]
            risk += (f_is / f1**2 - f_was / f0**2) * layer.risk[f]
            if len(layer.together):
                risk += 2 * (share_e * state.danger[k, e] + share_f * state.danger[k, f])
                risk += 2 * share_e * share_f * layer.together[e, f]
            state.weighed[VARIANCE, k] = state.sums[VARIANCE, k] + risk
            noise += risk
            linear += (e_is - e_was) * layer.standing[e, k] + (f_is - f_was) * layer.standing[f, k]
            if rules.coherent:
                linear -= share_e * layer.leaving[e, k] + share_f * layer.leaving[f, k]
    state.touched[-1] = count
    after = (seconds, squares, noise, visits, node_visits)
    return linear + step_seconds(rules, after, gpus) - step_seconds(rules, totals, gpus)


@compiled
def accept(layer: Layer, state: State, exchange: Exchange) -> None:
    """Carry out the exchange that was weighed last."""
    x, y, f = exchange
    e = state.slots[x]
    gpus = layer.standing.shape[1]
    for index in range(state.touched[-1]):
        k = state.touched[index]
        level = 0 if k < gpus else 1
        for row in range(5 if level == 0 else 3):
            state.sums[row, k] = state.weighed[row, k]
        by_e, by_f = state.change[COMPANY_E, k], state.change[COMPANY_F, k]
        for other in range(len(layer.pairs)):
            state.company[k, other] += by_e * layer.pairs[e, other] + by_f * layer.pairs[f, other]
        if level == 0:
            by_e, by_f = state.change[SHARE_E, k], state.change[SHARE_F, k]
            for other in range(len(layer.together)):
                near = by_e * layer.together[e, other] + by_f * layer.together[f, other]
                state.danger[k, other] += near
    add_up(state, gpus)
    state.slots[x] = f
    move(state, x, (e, f), gpus)
    if y >= 0:
        state.slots[y] = e
        move(state, y, (f, e), gpus)


@compiled
def add_up(state: State, gpus: int) -> None:
    """Bring the totals up to date."""
    state.totals[:] = 0.0
    for k in range(state.sums.shape[1]):
        if k < gpus:
            state.totals[0] += state.sums[SECONDS, k]
            state.totals[1] += state.sums[SECONDS, k] ** 2
            state.totals[2] += state.sums[VARIANCE, k]
            state.totals[3] += state.sums[CHANCE, k]
        else:
            state.totals[4] += state.sums[CHANCE, k]


@compiled
def move(state: State, slot: int, experts: tuple[int, int], gpus: int) -> None:
    """Count the first expert out of a slot's places and the second in."""
    out, into = experts
    places, size = state.held.shape[0], state.slots.shape[0] // gpus
    for level in range(2 if places > gpus else 1):
        k = slot // size if level == 0 else gpus + slot // (state.slots.shape[0] // (places - gpus))
        state.held[k, out] -= 1
        state.replicas[level, out] -= int(state.held[k, out] == 0)
        state.replicas[level, into] += int(state.held[k, into] == 0)
        state.held[k, into] += 1


@compiled
def settle(layer: Layer, rules: Rules, slots: IntArray) -> State:
    """The state of a layer whose slots hold these experts."""
    gpus, experts = layer.standing.shape[1], layer.use.shape[0]
    places = gpus + (rules.nodes if rules.nodes > 1 else 0)
    size, per_node = slots.shape[0] // gpus, gpus // rules.nodes
    held = np.zeros((places, experts), dtype=np.int64)
    for slot in range(slots.shape[0]):
        held[slot // size, slots[slot]] += 1
        if places > gpus:
            held[gpus + slot // (size * per_node), slots[slot]] += 1
    replicas = np.ones((2, experts), dtype=np.int64)
    for e in range(experts):
        replicas[0, e] = (held[:gpus, e] > 0).sum()
        if places > gpus:
            replicas[1, e] = (held[gpus:, e] > 0).sum()
    company, danger = np.zeros((places, experts)), np.zeros((gpus, experts))
    sums = np.zeros((5, places))
    for k in range(places):
        level = 0 if k < gpus else 1
        for e in range(experts):
            if held[k, e] > 0:
                r = replicas[level, e]
                sums[MEAN, k] += layer.use[e] / r
                if len(layer.pairs):
                    company[k] += rules.company[level, r] * layer.pairs[e]
                if level == 0:
                    sums[SECONDS, k] += layer.seconds[e, r]
                    sums[VARIANCE, k] += layer.risk[e] / r**2
                    if len(layer.together):
                        danger[k] += layer.together[e] / r
        for e in range(experts):
            if held[k, e] > 0:
                r = replicas[level, e]
                sums[PAIRS, k] += rules.company[level, r] * company[k, e] / 2
                if level == 0:
                    sums[VARIANCE, k] += danger[k, e] / r
        if len(layer.pairs):
            sums[CHANCE, k] = visit_chance(sums[MEAN, k], sums[PAIRS, k], rules.top_k)
    state = State(
        slots=slots,
        replicas=replicas,
        held=held,
        company=company,
        danger=danger,
        sums=sums,
        totals=np.zeros(5),
        touched=np.zeros(places + 1, dtype=np.int64),
        weighed=np.zeros((5, places)),
        change=np.zeros((4, places)),
    )
    add_up(state, gpus)
    return state
