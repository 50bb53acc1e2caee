"""Balance in few moves: of the GPU furthest from the mean the best exchange, again and again."""

import math

import numpy as np

from placer.arrays import FloatArray
from placer.optimizers.joint.state import (
    SECONDS,
    Exchange,
    Layer,
    Rules,
    State,
    accept,
    compiled,
    inlined,
    weigh,
)


@compiled
def tighten(layer: Layer, rules: Rules, state: State) -> float:
    """Seconds a step saved. ``state`` is changed."""
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
