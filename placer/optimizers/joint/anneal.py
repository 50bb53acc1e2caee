"""Company and balance: simulated annealing over the exchanges of one layer, then tightening."""

import math
from typing import NamedTuple

import numpy as np

from placer.arrays import IntArray
from placer.optimizers.joint.state import Layer, Rules, accept, compiled, settle, weigh
from placer.optimizers.joint.tighten import tighten


class Schedule(NamedTuple):
    """Exchanges to try; first and last temperature, as shares of what a random exchange costs."""

    iterations: int
    hot: float
    cold: float
    seed: int


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
