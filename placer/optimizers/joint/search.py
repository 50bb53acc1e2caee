"""One layer in the search of ``joint``: what an exchange would do, annealing, tightening.

Compiled by Numba, and all in one file since its cache looks at the time stamp of the caller's file
alone: a changed callee elsewhere would go unnoticed.

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
# chance of a visit; of GPUs, the seconds of their experts with their variance, and tokens owned.
MEAN, PAIRS, CHANCE, SECONDS, VARIANCE, OWNED = range(6)
# Rows of State.change: by how much an exchange changes the weights of the two experts.
COMPANY_E, COMPANY_F, SHARE_E, SHARE_F = range(4)
# How much uneven ownership slows the links, over its rms; the best of 0.2 to 1.4 on real routing.
OWNERS = 0.3


compiled = numba.njit(cache=True, nogil=True, error_model="numpy")
inlined = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")

Totals = tuple[float, float, float, float, float, float]
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
    owning:   [E] tokens that stay where it ran, over their mean a GPU; empty, unless they stay
    """

    use: FloatArray
    pairs: FloatArray
    risk: FloatArray
    together: FloatArray
    seconds: FloatArray
    standing: FloatArray
    leaving: FloatArray
    owning: FloatArray


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


class Schedule(NamedTuple):
    """Exchanges to try; first and last temperature, as shares of what a random exchange costs."""

    iterations: int
    hot: float
    cold: float
    seed: int


class State(NamedTuple):
    """Where experts are. S slots, P places, of which the first G are GPUs.

    slots:    [S] the expert of each
    replicas: [2, E] GPUs and nodes that hold each expert
    held:     [P, E] slots of each place that hold each expert
    company:  [P, E] mean number of the place's experts that a token uses together with the expert
    danger:   [G, E] covariance of each expert's seconds with each GPU's
    sums:     [6, P] of each place (MEAN, ...)
    totals:   [6] over places: seconds, their squares, their variances, squares of tokens owned,
              GPU and node visits
    touched:  [P] the places that the exchange weighed last would change, and how many (last)
    weighed:  [6, P] their sums, and
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
    seconds, squares, noise, owned, visits, node_visits = totals
    mean = seconds / gpus
    variance = squares / gpus - mean * mean + noise / gpus
    local, network = visits * rules.visit_s, node_visits * rules.node_visit_s
    # A tenth of the faster links, too, so that they are not filled for nothing.
    links = max(local, network) + 0.1 * min(local, network)
    links *= 1 + OWNERS * math.sqrt(max(owned / gpus - 1, 0.0))
    return mean + rules.slowest * math.sqrt(max(variance, 0.0)) + links


@inlined
def weigh(layer: Layer, rules: Rules, state: State, exchange: Exchange) -> float:
    """Seconds a step that an exchange costs (or saves, below zero)."""
    x, y, f = exchange
    e = state.slots[x]
    gpus = layer.standing.shape[1]
    size, per_node = state.slots.shape[0] // gpus, gpus // rules.nodes
    now = state.totals
    totals = (now[0], now[1], now[2], now[3], now[4], now[5])
    seconds, squares, noise, owned, visits, node_visits = totals
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
        every = gpus if level == 0 else rules.nodes
        for index in range(every if spread else 1 if back < 0 else 2):
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
            if len(layer.owning):
                more = share_e * layer.owning[e] + share_f * layer.owning[f]
                state.weighed[OWNED, k] = state.sums[OWNED, k] + more
                owned += more * (2 * state.sums[OWNED, k] + more)
            linear += (e_is - e_was) * layer.standing[e, k] + (f_is - f_was) * layer.standing[f, k]
            if rules.coherent:
                linear -= share_e * layer.leaving[e, k] + share_f * layer.leaving[f, k]
    state.touched[-1] = count
    after = (seconds, squares, noise, owned, visits, node_visits)
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
        for row in range(6 if level == 0 else 3):
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
        if k >= gpus:
            state.totals[5] += state.sums[CHANCE, k]
            continue
        state.totals[0] += state.sums[SECONDS, k]
        state.totals[1] += state.sums[SECONDS, k] ** 2
        state.totals[2] += state.sums[VARIANCE, k]
        state.totals[3] += state.sums[OWNED, k] ** 2
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
    sums = np.zeros((6, places))
    for k in range(places):
        level = 0 if k < gpus else 1
        for e in range(experts):
            if held[k, e] > 0:
                r = replicas[level, e]
                if len(layer.pairs):
                    sums[MEAN, k] += layer.use[e] / r
                    company[k] += rules.company[level, r] * layer.pairs[e]
                if level == 0:
                    sums[SECONDS, k] += layer.seconds[e, r]
                    sums[VARIANCE, k] += layer.risk[e] / r**2
                    if len(layer.owning):
                        sums[OWNED, k] += layer.owning[e] / r
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
        totals=np.zeros(6),
        touched=np.zeros(places + 1, dtype=np.int64),
        weighed=np.zeros((6, places)),
        change=np.zeros((4, places)),
    )
    add_up(state, gpus)
    return state


@compiled
def tighten(layer: Layer, rules: Rules, state: State) -> float:
    """Seconds a step saved by exchanges of the GPU that is furthest from the mean, the best first.

    Annealing finds company, this finds balance, in few moves. ``state`` is changed.
    """
    gpus, experts = layer.standing.shape[1], layer.use.shape[0]
    size = state.slots.shape[0] // gpus
    settled = np.zeros(gpus, dtype=np.bool_)
    off, strain = np.empty(gpus), np.empty(experts)
    price, saved = layer.standing.max(), 0.0
    while True:
        mean = state.totals[0] / gpus
        variance = state.totals[1] / gpus - mean * mean + state.totals[2] / gpus
        # Seconds that a unit of squared deviation costs.
        worth = rules.slowest / (2 * gpus * math.sqrt(max(variance, 1e-30)))
        g, furthest = -1, 0.0
        for k in range(gpus):
            off[k] = state.sums[SECONDS, k] - mean
            if not settled[k] and abs(off[k]) > furthest:
                g, furthest = k, abs(off[k])
        if g < 0 or worth * 2 * furthest * furthest < price:
            return saved  # not even an exchange that evens two such GPUs out pays
        strain[:] = 0.0
        for slot in range(state.slots.shape[0]):
            strain[state.slots[slot]] += off[slot // size]
        exchange = best_of(layer, rules, state, (g, worth), (off, strain))
        if exchange[0] < 0:
            settled[g] = True
            continue
        saved -= weigh(layer, rules, state, exchange)
        accept(layer, state, exchange)
        for index in range(state.touched[-1]):
            if state.touched[index] < gpus:
                settled[state.touched[index]] = False


@compiled
def best_of(
    layer: Layer,
    rules: Rules,
    state: State,
    about: tuple[int, float],
    apart: tuple[FloatArray, FloatArray],
) -> Exchange:
    """The exchange of GPU g that saves most, (-1, -1, -1) if none does.

    Of each there is first a quick guess from the two experts' seconds; only what may be the best is
    weighed.
    about: g, and the seconds that a unit of squared deviation costs
    apart: [G] the GPUs' distance from their mean, and [E] its sum over each expert's GPUs
    """
    (g, worth), (off, strain) = about, apart
    gpus, experts = layer.standing.shape[1], layer.use.shape[0]
    size, per_node = state.slots.shape[0] // gpus, gpus // rules.nodes
    best, gain = (-1, -1, -1), 1e-9 * abs(state.totals[0]) / gpus
    for mine in range(g * size, g * size + size):
        e = state.slots[mine]
        seconds = layer.seconds[e, state.replicas[0, e]]
        for h in range(gpus):
            away = rules.keep_nodes and h // per_node != g // per_node
            if h == g or away or state.held[h, e] > 0:
                continue
            stays = layer.standing[e, g] - layer.standing[e, h]
            for other in range(h * size, h * size + size):
                f = state.slots[other]
                replicas = state.replicas[0, f]
                if state.held[g, f] == 0:
                    more = layer.seconds[f, replicas] - seconds
                    guess = -2 * worth * more * (off[g] - off[h] + more)
                    guess += stays + layer.standing[f, h] - layer.standing[f, g]
                    if guess > gain:
                        cost = weigh(layer, rules, state, (mine, other, f))
                        if -cost > gain:
                            best, gain = (mine, other, f), -cost
                if replicas > 1:
                    guess = guess_replica(layer, state, (worth, off, strain), (other, h, e))
                    if guess > gain:
                        cost = weigh(layer, rules, state, (other, -1, e))
                        if -cost > gain:
                            best, gain = (other, -1, e), -cost
        if state.replicas[0, e] < 2:
            continue
        for f in range(experts):
            away = rules.keep_nodes and state.held[gpus + g // per_node, f] == 0
            if away or state.held[g, f] > 0:
                continue
            guess = guess_replica(layer, state, (worth, off, strain), (mine, g, f))
            if guess > gain:
                cost = weigh(layer, rules, state, (mine, -1, f))
                if -cost > gain:
                    best, gain = (mine, -1, f), -cost
    return best


@inlined
def guess_replica(
    layer: Layer,
    state: State,
    apart: tuple[float, FloatArray, FloatArray],
    change: tuple[int, int, int],
) -> float:
    """Seconds saved, roughly, by slot x of GPU k getting expert f: as if no GPU held both."""
    (worth, off, strain), (x, k, f) = apart, change
    e = state.slots[x]
    re, rf = state.replicas[0, e], state.replicas[0, f]
    here = layer.seconds[f, rf + 1] - layer.seconds[e, re]
    more = layer.seconds[e, re - 1] - layer.seconds[e, re]
    less = layer.seconds[f, rf + 1] - layer.seconds[f, rf]
    squares = here * (2 * off[k] + here)
    squares += more * (2 * (strain[e] - off[k]) + (re - 1) * more)
    squares += less * (2 * strain[f] + rf * less)
    return layer.standing[e, k] - layer.standing[f, k] - worth * squares


@compiled
def anneal(
    layer: Layer, rules: Rules, schedule: Schedule, start: IntArray
) -> tuple[IntArray, float]:
    """[S] the best slots met on the way from ``start``, and the seconds a step that they save."""
    state = settle(layer, rules, start.copy())
    gpus, experts = layer.standing.shape[1], layer.use.shape[0]
    count = state.slots.shape[0]
    size, per_node = count // gpus, gpus // rules.nodes
    random = np.uint64(schedule.seed * 2 + 1) * np.uint64(0x9E3779B97F4A7C15)
    best, saved, lowest = state.slots.copy(), 0.0, 0.0
    scale, probes = 0.0, 0
    for iteration in range(schedule.iterations):
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
            accept(layer, state, exchange)
            saved -= cost
            if saved > lowest:
                lowest = saved
                best[:] = state.slots
    state = settle(layer, rules, best)
    return best, lowest + tighten(layer, rules, state)


def _compile() -> None:
    """Compile now, or load what was compiled before: a search should not have to wait for it."""
    experts, rates = np.zeros(2), np.zeros((2, 4))
    square, none = np.zeros((2, 2)), np.zeros(0)
    layer = Layer(experts, square, experts, square, rates, square, square, none)
    rules = Rules(1, 1, 0.0, 0.0, 1.0, False, False, False, np.ones((2, 4)))
    anneal(layer, rules, Schedule(1, 1.0, 1.0, 0), np.arange(2))


_compile()
