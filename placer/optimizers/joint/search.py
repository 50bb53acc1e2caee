"""One layer in the search of ``joint``: what an exchange would do, annealing, tightening.

Compiled by Numba, and all in one file since its cache looks at the time stamp of the caller's file
alone: a changed callee elsewhere would go unnoticed.

A *place* is a GPU or, after the GPUs, a node. Of each place the state knows the first two moments
of "how many of a token's experts are here", from which the chance of a visit follows, and of each
GPU also the seconds of its experts with their variance. An exchange changes the weights of at most
two experts on a few places; what it would cost follows from those, the others are not looked at.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from placer.arrays import BoolArray, FloatArray, IntArray
from placer.kernels import compiled, in_place, inlined

# Rows of State.sums: of each place, the mean number of a token's experts, of pairs of them, the
# chance of a visit; of GPUs, the seconds of their experts by arithmetic and by reading weights, the
# larger of both, their variance, and tokens owned.
MEAN, PAIRS, CHANCE, ARITHMETIC, READING, SECONDS, VARIANCE, OWNED = range(8)
OF_NODES = 3  # so many of the rows are of nodes, too
NOBODY = 1e-9  # chance of a visit below which it is rounding
TINY = 1e-300  # instead of nothing to divide by
TIES = 1e-3  # weight of the deviations where the peak counts, which many exchanges leave alike
# Of the mean, by how much two times must differ: spreads are differences of squares, which hold to
# the root of a float's precision alone.
ROUNDING = 1e-7
PASSES = 4  # exchanges of a slot in the mean, at most, that take a layer where it pays to be
STAGES = 64  # of annealing, after each of which the shares of all replicas are reckoned again;
STAGE = 2  # exchanges tried for each slot there, at least: that takes as long as hundreds of them
# Rows of State.change: by how much an exchange changes the weights of the two experts.
COLOCATED_E, COLOCATED_F, SHARE_E, SHARE_F, SINGLE_E, SINGLE_F = range(6)

Totals = tuple[
    float, float, float, float, float, float, float, float, float, float, float
]  # as in State.totals
# (x, y, f): slot x gets expert f, and slot y, unless it is -1, the expert of x.
# Integers are Python's or NumPy's.
Exchange = tuple[Any, Any, Any]
# Exchanges, and the seconds a step that each saved.
Steps = list[tuple[Any, Any, Any, Any]]
# How the experts' seconds are: GPUs, mean, squared deviations with their noise, Rules.slowest, the
# slowest GPU's, and the three GPUs with most and their seconds.
Three = tuple[Any, Any, Any]
Outlook = tuple[int, float, float, float, float, Three, Three]
Grown = tuple[Any, Any, Any]
Pair = tuple[Any, Any]


class Layer(NamedTuple):
    """What traffic does in one layer. E experts, G GPUs, R one more than the most replicas.

    use:        [E] chance that a token uses the expert
    pairs:      [E, E] chance that it uses both, zero diagonal; empty if visits cost nothing
    risk:       [E] variance of the expert's seconds in the traffic to come, s^2
    together:   [E, E] their covariance, zero diagonal; empty if experts vary by themselves
    arithmetic: [E] seconds of computing all of the expert's tokens of a step
    reading:    [E, R] seconds of reading its weights, on the GPU of each of r replicas
    standing:   [E, G] seconds a step for the expert's being on the GPU: the price of bringing it
                there, less what is saved by its being where its tokens come from
    leaving:    [E, G] seconds saved a step by an expert, over r, that is where its tokens go next
    owners:     [E, G] chance that a token that uses the expert is at home on the GPU; empty, unless
                that is known: alike for all
    owning:     [E] tokens that stay where the expert ran, over their mean a GPU; empty, unless they
                stay
    visitors:   [P, E] of the tokens whose home is elsewhere, of each place, the chance that one
                uses the expert; empty, unless homes are chosen: ``use`` then
    visiting:   [P, E, E] the same of both, ``pairs``
    """

    use: FloatArray
    pairs: FloatArray
    risk: FloatArray
    together: FloatArray
    arithmetic: FloatArray
    reading: FloatArray
    standing: FloatArray
    leaving: FloatArray
    owners: FloatArray
    owning: FloatArray
    visitors: FloatArray
    visiting: npt.NDArray[np.float32]


class Rules(NamedTuple):
    """What holds in every layer.

    visit_s, node_visit_s: seconds a step of a GPU's links and of a node's, if every token that is
                elsewhere visits it
    latency_s, node_latency_s: seconds that they take however few tokens visit, if any does
    overlap:    share of them that experts' work hides
    owned:      tokens of the place, in all nodes, whose GPUs own most, over the mean: local links
                carry what the GPU in the owner's place forwards
    owned_node: of the GPU that owns most, which sends them over the network
    slowest, slowest_node: how many standard deviations the slowest GPU and node is above the mean
    coherent:   whether ``leaving`` counts
    by_rule:    whether replicas share as the dispatch rule says (``sharing.shares``), or evenly
    keep_nodes: whether experts must stay on the nodes where they are
    two_nodes:  whether every expert must be on two nodes
    hedged:     whether traffic that was not recorded counts; if not, no layer gets slower on what
                was recorded
    share:      [2, R] on GPUs and on nodes: share of the tokens elsewhere that each of r replicas
                serves
    colocated:  [2, R] the chance that one of r replicas serves a token that visits from elsewhere
    """

    nodes: int
    top_k: int
    visit_s: float
    node_visit_s: float
    latency_s: float
    node_latency_s: float
    overlap: float
    owned: float
    owned_node: float
    slowest: float
    slowest_node: float
    coherent: bool
    by_rule: bool
    keep_nodes: bool
    two_nodes: bool
    hedged: bool
    share: FloatArray
    colocated: FloatArray


class Schedule(NamedTuple):
    """Exchanges to try; first and last temperature, as shares of what a random exchange costs.

    twice: then try as many with the peaks counting, too
    """

    iterations: int
    hot: float
    cold: float
    seed: int
    twice: bool = False


class Progress(NamedTuple):
    """How far a search has come: what its random numbers go on from; what exchanges cost, by so
    many."""

    random: np.uint64
    scale: float
    probes: int


class State(NamedTuple):
    """Where experts are. S slots, P places, of which the first G are GPUs.

    slots:    [S] the expert of each
    replicas: [2, E] GPUs and nodes that hold each expert
    held:     [P, E] slots of each place that hold each expert
    where:    [E, R] the GPUs that hold each expert, in no order
    colocated: [P, E] mean number of the place's experts that a token uses together with the expert
    ahead:    [G, E] the same, of those that choose their replica before the expert does
    shares:   [E, G] share of each expert's tokens that each GPU serves by the rule
    follow:   [E, G] seconds of arithmetic that each GPU gains of an expert's replicas elsewhere, a
              unit of ``ahead``
    pull:     [2, G, E] the same of all replicas there of experts with a lower id than the expert,
              which choose after it only while it is single; and of those with a higher one
    danger:   [G, E] covariance of each expert's seconds with each GPU's
    sums:     [8, P] of each place (MEAN, ...)
    totals:   [11] over GPUs: seconds, their squares, their variances, squares of tokens owned,
              visits, their squares; over nodes: visits, their squares; most seconds of a GPU, most
              visits of a GPU, and of a node
    peak:     [3] the places of the last three
    sharp:    [1] whether these count: they are what is felt, but lead a search nowhere
    touched:  [P + 1] the places that the exchange weighed last would change, and how many (last)
    marked:   [P] whether they are among them
    weighed:  [8, P] their sums, and
    change:   [6, P] the change of the two experts' weights (COLOCATED_E, ...)
    holders:  [R] GPUs of an expert after the exchange, and
    fresh:    [3, R] their shares, chances of a visit, and by how much shares grow with ``ahead``
    step:     [1] seconds of the layer's step as things stand
    """

    slots: IntArray
    replicas: IntArray
    held: IntArray
    where: IntArray
    colocated: FloatArray
    ahead: FloatArray
    shares: FloatArray
    follow: FloatArray
    pull: FloatArray
    danger: FloatArray
    sums: FloatArray
    totals: FloatArray
    peak: IntArray
    sharp: IntArray
    touched: IntArray
    marked: IntArray
    weighed: FloatArray
    change: FloatArray
    holders: IntArray
    fresh: FloatArray
    step: FloatArray


@inlined
def visit_chance(mean: float, pairs: float, top_k: int) -> float:
    """``cost.visits.visit_chance`` of one place."""
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
def rms(total: float, squares: float, count: int, noise: float) -> float:
    """Of ``count`` numbers about their mean, with their noise's variance added."""
    mean = total / count
    return math.sqrt(max(squares / count - mean * mean + noise / count, 0.0))


@inlined
def slowest(
    total: float, squares: float, peak: float, count: int, above: float, noise: float
) -> float:
    """Of ``count`` numbers, the largest that is to be expected: so many deviations above their
    mean, or their own peak; of equal peaks, a little less where the deviations are smaller."""
    likely = total / count + above * rms(total, squares, count, noise)
    return max(likely, peak) + TIES * likely


@inlined
def step_seconds(rules: Rules, totals: Totals, gpus: int) -> float:
    """Seconds of a step: the slowest GPU's experts, as expected, and the slowest link, whose visits
    are taken to vary as the loads behind them do."""
    (
        seconds, squares, noise, owned, visits, visits2, node_visits, node_visits2,
        latest, busiest, busiest_node,
    ) = totals  # fmt: skip
    experts = slowest(seconds, squares, latest, gpus, rules.slowest, noise)
    vary = noise / max(seconds * seconds, TINY)
    local = slowest(visits, visits2, busiest, gpus, rules.slowest, vary * visits * visits)
    most, most_node = rules.owned, rules.owned_node  # or who owns most tokens sends most
    if rules.coherent:
        uneven = math.sqrt(max(owned / gpus - 1.0, 0.0))
        most = max(most, 1.0 + rules.slowest * uneven / math.sqrt(rules.nodes))
        most_node = max(most_node, 1.0 + rules.slowest * uneven)
    local = max(local, visits / gpus * most)
    links = link_seconds(local, rules.visit_s, rules.latency_s)
    if rules.nodes > 1:
        above = rules.slowest_node
        spread = vary * node_visits * node_visits
        node = slowest(node_visits, node_visits2, busiest_node, rules.nodes, above, spread)
        node = max(node, node_visits / rules.nodes * most_node)
        links = max(links, link_seconds(node, rules.node_visit_s, rules.node_latency_s))
    return both(rules, experts, links)


@inlined
def link_seconds(visits: float, visit_s: float, latency_s: float) -> float:
    """Of links that nobody visits over, none: their latency is not waited for then."""
    return visits * visit_s + latency_s if visits > NOBODY else 0.0


@inlined
def both(rules: Rules, experts: float, links: float) -> float:
    hidden = rules.overlap * links
    return experts + links - hidden + max(hidden - experts, 0.0)


@inlined
def highest(state: State, row: int, count: int, which: int, places: tuple[int, int]) -> float:
    """The peak of a row after the exchange that touches ``count`` places, of those in the range."""
    top, peak, lowered = 0.0, state.peak[which], False
    for index in range(count):
        k = state.touched[index]
        if places[0] <= k < places[1]:
            top = max(top, state.weighed[row, k])
            lowered = lowered or k == peak
    if not lowered:
        return max(top, state.sums[row, peak])
    for index in range(count):
        state.marked[state.touched[index]] = 1
    for k in range(places[0], places[1]):
        if state.marked[k] == 0:
            top = max(top, state.sums[row, k])
    for index in range(count):
        state.marked[state.touched[index]] = 0
    return top


@inlined
def as_tuple(now: FloatArray) -> Totals:
    return (
        now[0], now[1], now[2], now[3], now[4], now[5], now[6], now[7], now[8], now[9], now[10],
    )  # fmt: skip


@inlined
def weigh(layer: Layer, rules: Rules, state: State, exchange: Exchange) -> float:
    """Seconds a step that an exchange costs (or saves, below zero)."""
    x, y, f = exchange
    e = state.slots[x]
    gpus = layer.standing.shape[1]
    size, per_node = state.slots.shape[0] // gpus, gpus // rules.nodes
    seconds, squares, noise, owned, visits, visits2, node_visits, node_visits2, _, _, _ = as_tuple(
        state.totals
    )
    linear, count, chosen = 0.0, 0, len(layer.visitors) > 0
    for index in range(state.touched[-1] if rules.by_rule else 0):
        state.change[SHARE_E:, state.touched[index]] = 0.0
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
            state.touched[-1] = count
            return math.inf
        spread = e1 != e0 or f1 != f0
        every = gpus if level == 0 else rules.nodes
        for index in range(every if spread else 1 if back < 0 else 2):
            k = first + index if spread else (to if index == 0 else back)
            into = int(k == to) - int(k == back)
            has_e, has_f = state.held[k, e], state.held[k, f]
            if into == 0 and has_e == 0 and has_f == 0:
                continue
            e_was, e_is = int(has_e > 0), int(has_e - into > 0)
            f_was, f_is = int(has_f > 0), int(has_f + into > 0)
            colocated_e = e_is * rules.colocated[level, e1] - e_was * rules.colocated[level, e0]
            colocated_f = f_is * rules.colocated[level, f1] - f_was * rules.colocated[level, f0]
            mean, pairs, chance = 0.0, 0.0, 0.0
            if len(layer.pairs):
                mean_e = e_is * rules.share[level, e1] - e_was * rules.share[level, e0]
                mean_f = f_is * rules.share[level, f1] - f_was * rules.share[level, f0]
                use_e, use_f, near = layer.use[e], layer.use[f], layer.pairs[e, f]
                if chosen:
                    use_e, use_f = layer.visitors[k, e], layer.visitors[k, f]
                    near = layer.visiting[k, e, f]
                mean = state.sums[MEAN, k] + use_e * mean_e + use_f * mean_f
                pairs = state.sums[PAIRS, k] + colocated_e * state.colocated[k, e]
                pairs += colocated_f * (state.colocated[k, f] + colocated_e * near)
                chance = visit_chance(mean, pairs, rules.top_k)
            state.touched[count] = k
            count += 1
            state.change[COLOCATED_E, k] = colocated_e
            state.change[COLOCATED_F, k] = colocated_f
            state.weighed[MEAN, k] = mean
            state.weighed[PAIRS, k] = pairs
            state.weighed[CHANCE, k] = chance
            more = chance - state.sums[CHANCE, k]
            if level == 1:
                node_visits += more
                node_visits2 += more * (2 * state.sums[CHANCE, k] + more)
                continue
            visits += more
            visits2 += more * (2 * state.sums[CHANCE, k] + more)
            share_e, share_f = e_is / e1 - e_was / e0, f_is / f1 - f_was / f0
            state.change[SHARE_E, k] = share_e
            state.change[SHARE_F, k] = share_f
            more = e_is * layer.reading[e, e1] - e_was * layer.reading[e, e0]
            more += f_is * layer.reading[f, f1] - f_was * layer.reading[f, f0]
            state.weighed[READING, k] = state.sums[READING, k] + more
            state.weighed[ARITHMETIC, k] = state.sums[ARITHMETIC, k]
            if rules.by_rule:
                state.change[SINGLE_E, k] = e_is * (e1 == 1) - e_was * (e0 == 1)
                state.change[SINGLE_F, k] = f_is * (f1 == 1) - f_was * (f0 == 1)
                state.marked[k] = 1
            else:
                more = layer.arithmetic[e] * share_e + layer.arithmetic[f] * share_f
                state.weighed[ARITHMETIC, k] += more
            # Squares of the weights before and after; no GPU holds an expert twice.
            risk = (e_is / e1**2 - e_was / e0**2) * layer.risk[e]
            risk += (f_is / f1**2 - f_was / f0**2) * layer.risk[f]
            if len(layer.together):
                risk += 2 * (share_e * state.danger[k, e] + share_f * state.danger[k, f])
                risk += 2 * share_e * share_f * layer.together[e, f]
            state.weighed[VARIANCE, k] = state.sums[VARIANCE, k] + risk
            noise += risk
            if len(layer.owning):
                more = share_e * layer.owning[e] + share_f * layer.owning[f]
                state.weighed[OWNED, k] = state.sums[OWNED, k] + more
                owned += more * (2 * state.sums[OWNED, k] + more)
            linear += (e_is - e_was) * layer.standing[e, k] + (f_is - f_was) * layer.standing[f, k]
            if rules.coherent:
                linear -= share_e * layer.leaving[e, k] + share_f * layer.leaving[f, k]
        if level == 0 and rules.by_rule:
            count = share_out(layer, rules, state, exchange, count)
    state.touched[-1] = count
    for index in range(count):
        k = state.touched[index]
        if k < gpus:
            state.weighed[SECONDS, k] = max(state.weighed[ARITHMETIC, k], state.weighed[READING, k])
            more = state.weighed[SECONDS, k] - state.sums[SECONDS, k]
            seconds += more
            squares += more * (2 * state.sums[SECONDS, k] + more)
    latest, busiest, busiest_node = 0.0, 0.0, 0.0
    if state.sharp[0]:
        latest = highest(state, SECONDS, count, 0, (0, gpus))
    if state.sharp[0] and len(layer.pairs):
        busiest = highest(state, CHANCE, count, 1, (0, gpus))
        if rules.nodes > 1:
            busiest_node = highest(state, CHANCE, count, 2, (gpus, gpus + rules.nodes))
    after = (
        seconds, squares, noise, owned, visits, visits2, node_visits, node_visits2,
        latest, busiest, busiest_node,
    )  # fmt: skip
    return linear + step_seconds(rules, after, gpus) - state.step[0]


@in_place
def share_out(layer: Layer, rules: Rules, state: State, exchange: Exchange, count: int) -> int:
    """Reckon the arithmetic of the exchange's GPUs, and of those that its replicas' tokens come
    from or go to. Returns how many places are touched then.

    Other experts' replicas follow the two as far as their shares grow in proportion; what they lose
    elsewhere is left to ``accept``.
    """
    x, y, f = exchange
    e = state.slots[x]
    gpus = layer.standing.shape[1]
    size = state.slots.shape[0] // gpus
    to, back = x // size, y // size if y >= 0 else -1
    both = layer.pairs[e, f]
    for index in range(count):
        k = state.touched[index]
        for one, other, row in ((e, f, SHARE_E), (f, e, SHARE_F)):
            own = both * state.follow[other, k]  # reckoned below
            above = state.pull[1, k, one] - (own if other > one else 0.0)
            below = state.pull[0, k, one] - (own if other < one else 0.0)
            more = state.change[row, k] * above + state.change[row + 2, k] * below
            state.weighed[ARITHMETIC, k] += more
    for index in range(2):
        expert, n = e if index == 0 else f, 0
        for at in range(state.replicas[0, expert]):
            k = state.where[expert, at]
            leaves = k == (to if index == 0 else back)
            if leaves and state.held[k, expert] == 1:
                state.weighed[ARITHMETIC, k] -= layer.arithmetic[expert] * state.shares[expert, k]
                continue
            state.holders[n] = k
            n += 1
        arrives = back if index == 0 else to
        if arrives >= 0 and state.held[arrives, expert] == 0:
            state.holders[n] = arrives
            n += 1
        divide(layer, rules, state, (expert, n), (e, f))
        for at in range(n):
            k = state.holders[at]
            more = layer.arithmetic[expert] * (state.fresh[0, at] - state.shares[expert, k])
            if state.marked[k] == 0:
                state.marked[k] = 1
                state.touched[count] = k
                count += 1
                for row in range(len(state.sums)):
                    state.weighed[row, k] = state.sums[row, k]
                state.change[:, k] = 0.0
            state.weighed[ARITHMETIC, k] += more
    for index in range(count):
        state.marked[state.touched[index]] = 0
    return count


@inlined
def power(base: float, exponent: int) -> float:
    found = 1.0
    for _ in range(exponent):
        found *= base
    return found


@inlined
def taken(chance: float, others: float, replicas: int) -> float:
    """``sharing.taken`` of one replica, before the sum over replicas is made 1."""
    if replicas == 1:
        return 1.0
    none = power(1.0 - others, replicas - 1)
    joined = (1.0 - none * (1.0 - others)) / (replicas * others) if others > 1e-9 else 1.0
    return chance * joined + (1.0 - chance) * none / replicas


@inlined
def following(chance: float, replicas: int) -> float:
    """By how much ``taken`` grows with a replica's own chance of a visit, near equal chances."""
    if replicas < 2:
        return 0.0
    missed = 1.0 - power(1.0 - chance, replicas - 1)
    return missed / (replicas * chance) if chance > 1e-9 else (replicas - 1) / replicas


@in_place
def divide(layer: Layer, rules: Rules, state: State, whose: Pair, pair: Pair) -> None:
    """``sharing.shares`` of one expert, whose n GPUs are in ``holders``, into ``fresh``.

    whose: the expert and n
    pair:  the experts whose weights change as in ``change``
    """
    (expert, n), (e, f) = whose, pair
    if n == 1:
        state.fresh[0, 0], state.fresh[2, 0] = 1.0, 0.0
        return
    gpus = layer.standing.shape[1]
    per_node = gpus // rules.nodes
    use, total = max(float(layer.use[expert]), 1e-12), 0.0
    others = max(rules.top_k - 1, 1)
    for at in range(n):
        k = state.holders[at]
        near = state.ahead[k, expert]
        near += state.change[SHARE_E if expert > e else SINGLE_E, k] * layer.pairs[e, expert]
        near += state.change[SHARE_F if expert > f else SINGLE_F, k] * layer.pairs[f, expert]
        missing = 1.0 - min(max(near / use / others, 0.0), 1.0)
        rest = power(missing, others - 1)
        state.fresh[1, at] = 1.0 - rest * missing
        state.fresh[2, at] = rest / use
        total += state.fresh[1, at]
    if n == 2 and rules.nodes == 1:
        one = owned(layer, rules, (expert, state.holders[0]))[0]
        other = owned(layer, rules, (expert, state.holders[1]))[0]
        more = (1.0 - one - other) / 2
        by = more * (state.fresh[1, 0] - state.fresh[1, 1])
        state.fresh[0, 0], state.fresh[0, 1] = one + more + by, other + more - by
        state.fresh[2, 0] *= more
        state.fresh[2, 1] *= more
        return
    every, elsewhere = 0.0, 1.0
    for at in range(n):
        every += taken(state.fresh[1, at], (total - state.fresh[1, at]) / (n - 1), n)
        here, around = owned(layer, rules, (expert, state.holders[at]))
        if rules.nodes == 1:
            elsewhere -= here
            continue
        for other in range(at):  # its node counts once
            if state.holders[other] // per_node == state.holders[at] // per_node:
                break
        else:
            elsewhere -= around
    for at in range(n):
        chance = state.fresh[1, at]
        here, around = owned(layer, rules, (expert, state.holders[at]))
        found = elsewhere * taken(chance, (total - chance) / (n - 1), n) / every
        grows = elsewhere * following(total / n, n)
        if rules.nodes > 1:
            node, mates, near, inside = state.holders[at] // per_node, 0, 0.0, 0.0
            for other in range(n):
                if state.holders[other] // per_node == node:
                    mates += 1
                    near += state.fresh[1, other]
                    around -= owned(layer, rules, (expert, state.holders[other]))[0]
            for other in range(n):
                if state.holders[other] // per_node == node:
                    one = state.fresh[1, other]
                    inside += taken(one, (near - one) / max(mates - 1, 1), mates)
            one = taken(chance, (near - chance) / max(mates - 1, 1), mates)
            found += around * one / inside
            grows += around * following(near / mates, mates)
        state.fresh[0, at] = here + found
        state.fresh[2, at] *= grows


@inlined
def owned(layer: Layer, rules: Rules, whose: Pair) -> Pair:
    """The chance that a token that uses the expert is at home on the GPU, and in its node."""
    expert, k = whose
    gpus = layer.standing.shape[1]
    per_node = gpus // rules.nodes
    if not len(layer.owners):
        return 1.0 / gpus, 1.0 / rules.nodes
    around = 0.0
    if rules.nodes > 1:
        first = k // per_node * per_node
        for other in range(first, first + per_node):
            around += layer.owners[expert, other]
    return layer.owners[expert, k], around


@in_place
def accept(layer: Layer, rules: Rules, state: State, exchange: Exchange) -> None:
    """Carry out the exchange that was weighed last. What it leaves out, ``refresh`` brings."""
    x, y, f = exchange
    e = state.slots[x]
    gpus = layer.standing.shape[1]
    for index in range(state.touched[-1]):
        k = state.touched[index]
        level = 0 if k < gpus else 1
        for row in range(OWNED + 1 if level == 0 else OF_NODES):
            state.sums[row, k] = state.weighed[row, k]
        by_e, by_f = state.change[COLOCATED_E, k], state.change[COLOCATED_F, k]
        if len(layer.visitors):
            mine = layer.visiting[k]
            for other in range(len(mine)):
                state.colocated[k, other] += by_e * mine[e, other] + by_f * mine[f, other]
        else:
            for other in range(len(layer.pairs)):
                more = by_e * layer.pairs[e, other] + by_f * layer.pairs[f, other]
                state.colocated[k, other] += more
        if level == 1:
            continue
        by_e, by_f = state.change[SHARE_E, k], state.change[SHARE_F, k]
        for other in range(len(layer.together)):
            near = by_e * layer.together[e, other] + by_f * layer.together[f, other]
            state.danger[k, other] += near
        if rules.by_rule:
            alone_e, alone_f = state.change[SINGLE_E, k], state.change[SINGLE_F, k]
            for other in range(len(layer.pairs)):
                near = (by_e if other > e else alone_e) * layer.pairs[e, other]
                near += (by_f if other > f else alone_f) * layer.pairs[f, other]
                state.ahead[k, other] += near
            state.change[SHARE_E:, k] = 0.0
    state.slots[x] = f
    move(state, x, (e, f), gpus)
    if y >= 0:
        state.slots[y] = e
        move(state, y, (f, e), gpus)
    if rules.by_rule:
        share(layer, rules, state, e)
        share(layer, rules, state, f)
    add_up(rules, state, gpus)


@in_place
def refresh(layer: Layer, rules: Rules, state: State) -> None:
    """Bring all experts' shares up to date."""
    state.sums[ARITHMETIC] = 0.0
    for e in range(layer.use.shape[0]):
        stays = state.replicas[0, e] == 1 and state.shares[e, state.where[e, 0]] == 1.0
        if rules.by_rule and not stays:
            share(layer, rules, state, e)
        even = 1.0 / state.replicas[0, e]
        for at in range(state.replicas[0, e]):
            k = state.where[e, at]
            part = state.shares[e, k] if rules.by_rule else even
            state.sums[ARITHMETIC, k] += layer.arithmetic[e] * part
    add_up(rules, state, layer.standing.shape[1])


@in_place
def share(layer: Layer, rules: Rules, state: State, expert: Any) -> None:
    """Bring an expert's shares by the rule up to date, and what hangs on them."""
    n = state.replicas[0, expert]
    for at in range(n):
        state.holders[at] = state.where[expert, at]
    divide(layer, rules, state, (expert, n), (expert, expert))
    for k in range(layer.standing.shape[1]):
        if state.shares[expert, k] > 0.0 and state.held[k, expert] == 0:
            state.shares[expert, k] = 0.0
            pull(layer, state, (expert, k), 0.0)
    for at in range(n):
        k = state.holders[at]
        state.shares[expert, k] = state.fresh[0, at]
        pull(layer, state, (expert, k), layer.arithmetic[expert] * state.fresh[2, at])


@inlined
def pull(layer: Layer, state: State, where: Pair, follow: float) -> None:
    expert, k = where
    more = follow - state.follow[expert, k]
    state.follow[expert, k] = follow
    if more != 0.0:
        for other in range(len(layer.pairs)):
            state.pull[int(expert > other), k, other] += more * layer.pairs[expert, other]


@in_place
def add_up(rules: Rules, state: State, gpus: int) -> None:
    """Bring the totals up to date."""
    state.totals[:] = 0.0
    state.peak[0], state.peak[1], state.peak[2] = 0, 0, gpus
    sharp = state.sharp[0] > 0
    for k in range(state.sums.shape[1]):
        chance = state.sums[CHANCE, k]
        which = 1 if k < gpus else 2
        if sharp and chance > state.totals[8 + which]:
            state.totals[8 + which], state.peak[which] = chance, k
        if k >= gpus:
            state.totals[6] += chance
            state.totals[7] += chance**2
            continue
        seconds = max(state.sums[ARITHMETIC, k], state.sums[READING, k])
        state.sums[SECONDS, k] = seconds
        state.totals[0] += seconds
        state.totals[1] += seconds**2
        state.totals[2] += state.sums[VARIANCE, k]
        state.totals[3] += state.sums[OWNED, k] ** 2
        state.totals[4] += chance
        state.totals[5] += chance**2
        if sharp and seconds > state.totals[8]:
            state.totals[8], state.peak[0] = seconds, k
    state.step[0] = step_seconds(rules, as_tuple(state.totals), gpus)


@in_place
def move(state: State, slot: int, experts: Pair, gpus: int) -> None:
    """Count the first expert out of a slot's places and the second in."""
    out, into = experts
    places, size = state.held.shape[0], state.slots.shape[0] // gpus
    for level in range(2 if places > gpus else 1):
        k = slot // size if level == 0 else gpus + slot // (state.slots.shape[0] // (places - gpus))
        state.held[k, out] -= 1
        if state.held[k, out] == 0:
            state.replicas[level, out] -= 1
            last = state.replicas[0, out]
            for at in range(last if level == 0 else 0):
                if state.where[out, at] == k:
                    state.where[out, at] = state.where[out, last]
        if state.held[k, into] == 0:
            if level == 0:
                state.where[into, state.replicas[0, into]] = k
            state.replicas[level, into] += 1
        state.held[k, into] += 1


@compiled
def settle(layer: Layer, rules: Rules, slots: IntArray, sharp: bool = False) -> State:
    """The state of a layer whose slots hold these experts."""
    gpus, experts = layer.standing.shape[1], layer.use.shape[0]
    places, most = gpus + (rules.nodes if rules.nodes > 1 else 0), layer.reading.shape[1]
    state = State(
        slots=slots,
        replicas=np.ones((2, experts), dtype=np.int64),
        held=np.zeros((places, experts), dtype=np.int64),
        where=np.zeros((experts, most), dtype=np.int64),
        colocated=np.zeros((places, experts)),
        ahead=np.zeros((gpus, experts)),
        shares=np.zeros((experts, gpus)),
        follow=np.zeros((experts, gpus)),
        pull=np.zeros((2, gpus, experts)),
        danger=np.zeros((gpus, experts)),
        sums=np.zeros((OWNED + 1, places)),
        totals=np.zeros(11),
        peak=np.zeros(3, dtype=np.int64),
        sharp=np.full(1, int(sharp), dtype=np.int64),
        touched=np.zeros(places + 1, dtype=np.int64),
        marked=np.zeros(places, dtype=np.int64),
        weighed=np.zeros((OWNED + 1, places)),
        change=np.zeros((6, places)),
        holders=np.zeros(most, dtype=np.int64),
        fresh=np.zeros((3, most)),
        step=np.zeros(1),
    )
    reckon(layer, rules, state)
    return state


@in_place
def reckon(layer: Layer, rules: Rules, state: State) -> None:
    """Bring all of the state up to date with its slots."""
    gpus, experts = layer.standing.shape[1], layer.use.shape[0]
    places, count = state.held.shape[0], state.slots.shape[0]
    size, per_node = count // gpus, gpus // rules.nodes
    state.held[:], state.replicas[0], state.sums[:] = 0, 0, 0.0
    state.colocated[:], state.ahead[:], state.danger[:] = 0.0, 0.0, 0.0
    for slot in range(count):
        state.held[slot // size, state.slots[slot]] += 1
        if places > gpus:
            state.held[gpus + slot // (size * per_node), state.slots[slot]] += 1
    for e in range(experts):
        for k in range(gpus):
            if state.held[k, e] > 0:
                state.where[e, state.replicas[0, e]] = k
                state.replicas[0, e] += 1
        if places > gpus:
            state.replicas[1, e] = 0
            for k in range(gpus, places):
                state.replicas[1, e] += int(state.held[k, e] > 0)
    for k in range(places):
        level = 0 if k < gpus else 1
        for e in range(experts):
            if state.held[k, e] > 0:
                join(layer, rules, state, (k, level, e))
        for e in range(experts):
            if state.held[k, e] > 0:
                r = state.replicas[level, e]
                state.sums[PAIRS, k] += rules.colocated[level, r] * state.colocated[k, e] / 2
                if level == 0:
                    state.sums[VARIANCE, k] += state.danger[k, e] / r
        if len(layer.pairs):
            mean, pairs = state.sums[MEAN, k], state.sums[PAIRS, k]
            state.sums[CHANCE, k] = visit_chance(mean, pairs, rules.top_k)
    refresh(layer, rules, state)


@inlined
def join(layer: Layer, rules: Rules, state: State, what: Three) -> None:
    """Add what an expert brings to a place. what: the place, 0 for a GPU and 1 for a node, and the
    expert"""
    k, level, e = what
    r, experts = state.replicas[level, e], layer.use.shape[0]
    near = rules.colocated[level, r]
    if len(layer.visitors):
        state.sums[MEAN, k] += layer.visitors[k, e] * rules.share[level, r]
        for other in range(experts):
            state.colocated[k, other] += near * layer.visiting[k, e, other]
    elif len(layer.pairs):
        state.sums[MEAN, k] += layer.use[e] * rules.share[level, r]
        for other in range(experts):
            state.colocated[k, other] += near * layer.pairs[e, other]
    if level > 0:
        return
    state.sums[READING, k] += layer.reading[e, r]
    state.sums[VARIANCE, k] += layer.risk[e] / r**2
    if len(layer.owning):
        state.sums[OWNED, k] += layer.owning[e] / r
    if len(layer.together):
        for other in range(experts):
            state.danger[k, other] += layer.together[e, other] / r
    if rules.by_rule:
        for other in range(e, experts):
            state.ahead[k, other] += layer.pairs[e, other] / r
        for other in range(e if r == 1 else 0):
            state.ahead[k, other] += layer.pairs[e, other]


@in_place
def seconds_of(layer: Layer, state: State) -> float:
    """Seconds of a step, with what standing and leaving cost."""
    found = state.step[0]
    for e in range(layer.use.shape[0]):
        for at in range(state.replicas[0, e]):
            k = state.where[e, at]
            found += layer.standing[e, k] - layer.leaving[e, k] / state.replicas[0, e]
    return found


@in_place
def recorded_s(layer: Layer, rules: Rules, state: State) -> float:
    """The same on what was recorded, whatever the noise: of the GPU and the links that are slowest
    there. The peaks must count."""
    most = rules.owned / len(state.danger)
    visits = max(state.totals[9], state.totals[4] * most)
    links = link_seconds(visits, rules.visit_s, rules.latency_s)
    if rules.nodes > 1:
        most = rules.owned_node / rules.nodes
        visits = max(state.totals[10], state.totals[6] * most)
        links = max(links, link_seconds(visits, rules.node_visit_s, rules.node_latency_s))
    return seconds_of(layer, state) - state.step[0] + both(rules, state.totals[8], links)


@compiled
def alone(layer: Layer, replicas: IntArray) -> FloatArray:
    """[2, 3, E] seconds of one of an expert's replicas on its GPU, by arithmetic and by reading
    weights: if there were one replica fewer, as things are, and with one more; shared evenly."""
    found = np.zeros((2, 3, len(replicas)))
    for e in range(len(replicas)):
        for more in range(3):
            r = replicas[e] + more - 1
            if r > 0:
                found[0, more, e] = layer.arithmetic[e] / r
                found[1, more, e] = layer.reading[e, r]
    return found


@compiled
def outlook(rules: Rules, state: State) -> Outlook:
    gpus = len(state.danger)
    seconds = state.sums[SECONDS, :gpus]
    top = np.argsort(-seconds)[np.minimum(np.arange(3), gpus - 1)]
    totals = state.totals
    mean = totals[0] / gpus
    now = slowest(totals[0], totals[1], totals[8], gpus, rules.slowest, totals[2])
    squares = totals[1] + totals[2] - gpus * mean * mean
    values = seconds[top[0]], seconds[top[1]], seconds[top[2]]
    return gpus, mean, squares, rules.slowest, now, (top[0], top[1], top[2]), values


@inlined
def won(view: Outlook, g: int, h: int, grown: Grown, squares: float) -> float:
    """Seconds by which the slowest GPU's experts get faster.

    grown:   the seconds of GPUs g and h after it, and how much all seconds grow
    squares: by how much all squared deviations from the mean grow
    """
    gpus, mean, before, above, now, top, values = view
    others = values[2]
    if top[1] != g and top[1] != h:
        others = values[1]
    if top[0] != g and top[0] != h:
        others = values[0]
    shift = grown[2] / gpus
    after = max(before + squares - gpus * shift * shift, 0.0)
    then = mean + shift + above * math.sqrt(after / gpus)
    return now - max(then, grown[0], grown[1], others) - TIES * then


@compiled
def furthest(view: Outlook, off: FloatArray, settled: BoolArray, price: float) -> int:
    """The GPU that is furthest from the mean of those that are not settled; -1 if none is left.

    Settled is also one that wins less than the price even if it and the furthest get even.
    off: [G] the GPUs' seconds less their mean
    """
    order = np.argsort(-np.abs(off))
    mean = view[1]
    for g in order:
        if settled[g]:
            continue
        h = order[0] if g != order[0] else order[min(1, len(order) - 1)]
        even = off[g] ** 2 + (off[h] ** 2 if h != g else 0.0)
        if won(view, g, h, (mean, mean, -off[g] - off[h]), -even) > price:
            return int(g)
        settled[g] = True
    return -1


@compiled
def tighten(layer: Layer, rules: Rules, state: State) -> Steps:
    """Exchanges of the GPU that is furthest from the mean, the best first, as long as they save.

    Annealing finds co-location, this finds balance, in few moves. ``state`` is changed; what was
    done is returned, with what it saved.
    """
    gpus, experts = layer.standing.shape[1], layer.use.shape[0]
    size = state.slots.shape[0] // gpus
    state.sharp[0] = 1
    refresh(layer, rules, state)
    settled = np.zeros(gpus, dtype=np.bool_)
    off, strain = np.empty(gpus), np.empty(experts)
    tried = np.empty((size * (state.slots.shape[0] * 2 + experts), 3), dtype=np.int64)
    guesses, each = np.empty(len(tried)), alone(layer, state.replicas[0])
    done = [(np.int64(0), np.int64(0), np.int64(0), 0.0) for _ in range(0)]
    price = layer.standing.max()
    nothing = ROUNDING * abs(state.totals[0]) / gpus
    while len(done) < PASSES * len(state.slots):  # more would go in circles
        view = outlook(rules, state)
        off[:] = state.sums[SECONDS, :gpus] - view[1]
        g = furthest(view, off, settled, price)
        if g < 0:
            return done
        strain[:] = 0.0
        for slot in range(state.slots.shape[0]):
            strain[state.slots[slot]] += off[slot // size]
        count = guess_all(layer, rules, state, (view, g), (off, strain, each), (tried, guesses))
        # Only what may be the best is weighed, the most promising first.
        x, y, f, gain = np.int64(-1), np.int64(-1), np.int64(-1), nothing
        while count > 0:
            at = int(guesses[:count].argmax())
            if guesses[at] <= gain:
                break
            exchange = (tried[at, 0], tried[at, 1], tried[at, 2])
            cost = weigh(layer, rules, state, exchange)
            if -cost > gain:
                (x, y, f), gain = exchange, -cost
            guesses[at] = 0.0
        if x < 0:
            settled[g] = True
            continue
        e, before = state.slots[x], seconds_of(layer, state) if rules.by_rule else 0.0
        weigh(layer, rules, state, (x, y, f))
        accept(layer, rules, state, (x, y, f))
        for index in range(state.touched[-1]):
            if state.touched[index] < gpus:
                settled[state.touched[index]] = False
        if rules.by_rule:
            refresh(layer, rules, state)
            gain = before - seconds_of(layer, state)
            if gain <= nothing:  # what was left out mattered: back
                weigh(layer, rules, state, (x, y, e))
                accept(layer, rules, state, (x, y, e))
                refresh(layer, rules, state)
                settled[:] = True
                continue
        each = alone(layer, state.replicas[0])
        done.append((x, y, f, gain))
    return done


@compiled
def descend(
    layer: Layer, rules: Rules, start: IntArray, away: FloatArray, prices: FloatArray
) -> tuple[IntArray, FloatArray]:
    """Exchanges of ``tighten`` as moves get cheaper, and what a move wins with each.

    away:   [E, G] 1 where the expert is not on the GPU in the placement that runs
    prices: [prices] seconds a step of bringing an expert there, falling

    Returns [exchanges, 4], x, y, f and how many more slots are moved then; and [exchanges] seconds
    a step won a move, never rising: of the runs of exchanges that win most a move together, since
    one may prepare what the next wins (the concave majorant of what they win over their moves).
    """
    state = settle(layer, rules, start.copy())
    row, size = start.copy(), len(start) // away.shape[1]
    found = np.empty((PASSES * len(start), 4), dtype=np.int64)
    won_s = np.empty(len(found))
    count = 0
    for price in prices:
        dear = Layer(
            layer.use,
            layer.pairs,
            layer.risk,
            layer.together,
            layer.arithmetic,
            layer.reading,
            layer.standing + price * away,
            layer.leaving,
            layer.owners,
            layer.owning,
            layer.visitors,
            layer.visiting,
        )
        for x, y, f, gain in tighten(dear, rules, state):
            if count == len(found):
                break
            e, more = row[x], away[f, x // size] - away[row[x], x // size]
            if y >= 0:
                more += away[e, y // size] - away[f, y // size]
                row[y] = e
            row[x] = f
            found[count, 0], found[count, 1], found[count, 2] = x, y, f
            found[count, 3] = np.int64(more)
            won_s[count] = gain + price * more
            count += 1
    return found[:count], by_move(found[:count, 3], won_s[:count])


@compiled
def by_move(moves: IntArray, won_s: FloatArray) -> FloatArray:
    """[exchanges] what a move wins in the run of exchanges that each belongs to, never rising; inf
    where it takes none."""
    count = len(moves)
    first = np.empty(count + 1, dtype=np.int64)
    total, taken = np.empty(count), np.empty(count)
    runs = 0
    for at in range(count):
        first[runs], total[runs], taken[runs] = at, won_s[at], moves[at]
        runs += 1
        while runs > 1:
            last, before = runs - 1, runs - 2
            if taken[last] > 0 and (
                taken[before] <= 0 or total[before] * taken[last] > total[last] * taken[before]
            ):
                break
            total[before] += total[last]
            taken[before] += taken[last]
            runs -= 1
    first[runs] = count
    found = np.empty(count)
    for run in range(runs):
        each = total[run] / taken[run] if taken[run] > 0 else math.inf
        found[first[run] : first[run + 1]] = each
    return found


@compiled
def guess_all(
    layer: Layer,
    rules: Rules,
    state: State,
    about: tuple[Outlook, int],
    apart: tuple[FloatArray, FloatArray, FloatArray],
    into: tuple[IntArray, FloatArray],
) -> int:
    """Exchanges of a GPU, with guesses of what they save, as if links cost nothing and each GPU
    were bound by what binds it now; returns how many may save anything.

    about: how things are, and the GPU
    apart: [G] the GPUs' seconds less their mean, [E] the sum of that over each expert's GPUs, and
           ``alone``
    into:  the exchanges and their guesses
    """
    (view, g), (off, strain, each), (tried, guesses) = about, apart, into
    # Tuples of many arrays are dear to hand on: what is looked at often is taken out of them.
    slots, held, replicas, standing = state.slots, state.held, state.replicas[0], layer.standing
    gpus, experts, mean = len(off), len(strain), view[1]
    size, per_node = len(slots) // gpus, gpus // rules.nodes
    binds = (state.sums[READING, :gpus] > state.sums[ARITHMETIC, :gpus]).astype(np.int64)
    flat = view[4] > (1.0 + TIES) * view[6][0]  # it is not the peak that counts
    here_of, mine = each[binds[g], 1], slots[g * size : g * size + size]
    may, there_s = np.empty(size, dtype=np.bool_), np.empty(size)
    count, off_g = 0, off[g]
    for h in range(gpus):
        if h == g or (rules.keep_nodes and h // per_node != g // per_node):
            continue
        there_of, off_h = each[binds[h], 1], off[h]
        for at in range(size):
            may[at], there_s[at] = held[h, mine[at]] == 0, there_of[mine[at]]
        for other in range(h * size, h * size + size):
            f = slots[other]
            single, stays, here_s = replicas[f] == 1, held[g, f] > 0, here_of[f]
            if single and stays:
                continue
            for at in range(size):
                if not may[at]:
                    continue
                e = mine[at]
                if not single:  # a replica of e instead of one of f
                    tried[count, 0], tried[count, 1], tried[count, 2] = other, -1, e
                    count += 1
                here = here_s - here_of[e]
                if stays or here * off_g >= 0.0:
                    continue  # away from the mean
                there = there_s[at] - there_of[f]
                squares = here * (2 * off_g + here) + there * (2 * off_h + there)
                if squares >= 0.0 and flat:
                    continue  # the deviation does not fall
                grown = mean + off_g + here, mean + off_h + there, here + there
                guess = won(view, g, h, grown, squares)
                guess += standing[e, g] - standing[e, h] + standing[f, h] - standing[f, g]
                if guess > 0.0:
                    tried[count, 0], tried[count, 1], tried[count, 2] = g * size + at, other, f
                    guesses[count] = guess
                    count += 1
    for at in range(size):
        if replicas[mine[at]] == 1:
            continue
        for f in range(experts):
            away = rules.keep_nodes and held[gpus + g // per_node, f] == 0
            if not away and held[g, f] == 0:
                tried[count, 0], tried[count, 1], tried[count, 2] = g * size + at, -1, f
                count += 1
    for at in range(count):
        if tried[at, 1] >= 0:
            continue
        guesses[at] = 0.0
        # Of replicas roughly: as if no GPU held both experts.
        x, f = tried[at, 0], tried[at, 2]
        k, e = x // size, slots[x]
        by, re, rf = binds[k], replicas[e], replicas[f]
        old, new = each[by, 1, e], each[by, 2, f]
        more, less = each[by, 0, e] - old, new - each[by, 1, f]
        here = new - old
        squares = here * (2 * off[k] + here)
        squares += more * (2 * (strain[e] - off[k]) + (re - 1) * more)
        squares += less * (2 * strain[f] + rf * less)
        if squares >= 0.0 and (flat or here >= 0.0):
            continue  # neither the deviation falls nor the peak
        top = view[5][0] if view[5][0] != k else view[5][1]
        near = less if held[top, f] > 0 else more if held[top, e] > 0 else 0.0
        grown = mean + off[k] + here, mean + off[top] + near, here + (re - 1) * more + rf * less
        guesses[at] = standing[e, k] - standing[f, k] + won(view, k, top, grown, squares)
    return count


@compiled
def anneal(layer: Layer, rules: Rules, schedule: Schedule, start: IntArray) -> IntArray:
    """[S] the best slots met on the way from ``start``, tightened. On what was recorded they are no
    slower than ``start``: else they are tightened as if there were no noise, or else ``start`` is.
    """
    state = wander(layer, rules, schedule, start, False)
    if schedule.twice:
        state = wander(layer, rules, schedule, state.slots, True)
    tighten(layer, rules, state)
    if rules.hedged:
        return state.slots
    begun = settle(layer, rules, start.copy(), True)
    enough = recorded_s(layer, rules, begun)
    if recorded_s(layer, rules, state) <= enough:
        return state.slots
    sure = Layer(
        layer.use, layer.pairs, np.zeros_like(layer.risk), np.zeros((0, 0)), layer.arithmetic,
        layer.reading, layer.standing, layer.leaving, layer.owners, layer.owning, layer.visitors,
        layer.visiting,
    )  # fmt: skip
    tighten(sure, rules, state)
    if recorded_s(sure, rules, state) <= enough:
        return state.slots
    tighten(sure, rules, begun)
    return begun.slots if recorded_s(sure, rules, begun) <= enough else start.copy()


@compiled
def wander(layer: Layer, rules: Rules, schedule: Schedule, start: IntArray, sharp: bool) -> State:
    """The best met by simulated annealing from ``start`` [S]. sharp: whether the peaks count"""
    state = settle(layer, rules, start.copy(), sharp)
    best, least = state.slots.copy(), seconds_of(layer, state)
    met, found = best.copy(), settle(layer, rules, start.copy(), sharp)
    progress = Progress(np.uint64(schedule.seed * 2 + 1) * np.uint64(0x9E3779B97F4A7C15), 0.0, 0)
    iterations = schedule.iterations
    stage = max(iterations // STAGES, STAGE * len(start)) if rules.by_rule else max(iterations, 1)
    for begin in range(0, iterations, stage):
        if begin > 0:
            refresh(layer, rules, state)
            found.slots[:] = met
            reckon(layer, rules, found)
            if seconds_of(layer, found) < least:
                best[:], least = met, seconds_of(layer, found)
            met[:] = state.slots
        span = begin, min(begin + stage, iterations)
        progress = try_exchanges(layer, rules, schedule, state, met, progress, span)
    state.slots[:] = met
    reckon(layer, rules, state)
    if seconds_of(layer, state) > least:
        state.slots[:] = best
        reckon(layer, rules, state)
    return state


@in_place
def try_exchanges(
    layer: Layer,
    rules: Rules,
    schedule: Schedule,
    state: State,
    met: IntArray,
    begun: Progress,
    span: Pair,
) -> Progress:
    """Exchanges from one iteration to another. met: [S] becomes the best slots on the way"""
    gpus, experts = layer.standing.shape[1], layer.use.shape[0]
    count = state.slots.shape[0]
    size, per_node = count // gpus, gpus // rules.nodes
    random, scale, probes = begun
    saved, lowest = 0.0, 0.0
    for iteration in range(span[0], span[1]):
        # xorshift64
        random ^= random << np.uint64(13)
        random ^= random >> np.uint64(7)
        random ^= random << np.uint64(17)
        x = np.int64((random >> np.uint64(8)) % np.uint64(count))
        g, e = x // size, state.slots[x]
        if count > experts and state.replicas[0, e] > 1 and (random & np.uint64(3)) != 0:
            y, f = np.int64(-1), np.int64((random >> np.uint64(32)) % np.uint64(experts))
            if state.held[g, f] > 0:
                continue
            if rules.keep_nodes and state.held[gpus + g // per_node, f] == 0:
                continue
        else:
            y = np.int64((random >> np.uint64(32)) % np.uint64(count))
            h, f = y // size, state.slots[y]
            if g == h or state.held[g, f] > 0 or state.held[h, e] > 0:
                continue
            if rules.keep_nodes and g // per_node != h // per_node:
                continue
        exchange = (int(x), int(y), int(f))
        cost = weigh(layer, rules, state, exchange)
        if probes < 200:  # how much an exchange matters here
            if cost < math.inf:
                scale += abs(cost) / 200
                probes += 1
            continue
        progress = iteration / schedule.iterations
        temperature = scale * schedule.hot * (schedule.cold / schedule.hot) ** progress
        chance = (float(random >> np.uint64(40)) + 1.0) / 16777217.0
        if cost < -temperature * math.log(chance):
            accept(layer, rules, state, exchange)
            saved -= cost
            if saved > lowest:
                lowest = saved
                for slot in range(count):
                    met[slot] = state.slots[slot]
    return Progress(random, scale, probes)


def _compile() -> None:
    """Compile now, or load what was compiled before: a search should not have to wait for it."""
    experts, rates = np.zeros(2), np.zeros((2, 4))
    square, none, nobody = np.zeros((2, 2)), np.zeros(0), np.zeros((0, 2, 2), dtype=np.float32)
    layer = Layer(
        experts,
        square,
        experts,
        square,
        experts,
        rates,
        square,
        square,
        square[:0],
        none,
        square[:0],
        nobody,
    )
    tables = np.ones((2, 4))
    rules = Rules(
        1,
        1,
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        1.0,
        1.0,
        1.0,
        1.0,
        False,
        False,
        False,
        False,
        False,
        tables,
        tables,
    )
    anneal(layer, rules, Schedule(1, 1.0, 1.0, 0, True), np.arange(2))
    descend(layer, rules, np.arange(2), square, np.ones(1))


_compile()
