"""Moves from a placement in the order of what they win, as far as one likes to go.

Moves get cheaper, by quarters, from a price at which none pays; at each price every layer's best
exchanges are made. So the first moves win most, and what the first share of them wins is the best
that a greedy search finds for so many.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from placer.arrays import BoolArray, FloatArray, IntArray
from placer.optimizers.joint.search import Layer, Rules, descend
from placer.placement import Placement

QUARTERS = 6  # below 1/4096 of a GPU's seconds in a layer a move wins nothing worth telling
THREADS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Descent:
    """
    start:     [layers, slots] where it begins
    exchanges: [exchanges, 4] layer, and slot x that gets expert f; slot y, if not -1, gets x's
    prices:    [exchanges] seconds a step of a move at which each was made, falling
    begun:     slots moved from the placement that runs, where it begins
    moved:     [exchanges] and after each
    """

    start: IntArray
    exchanges: IntArray
    prices: FloatArray
    begun: int
    moved: IntArray

    def until(self, most: float, price: float = 0.0) -> IntArray:
        """[layers, slots] with at most so many slots moved, by moves that pay at the price."""
        fits = np.flatnonzero((self.moved <= most) & (self.prices >= price))
        table = self.start.copy()
        for layer, x, y, f in self.exchanges[: fits[-1] + 1 if len(fits) else 0].tolist():
            if y >= 0:
                table[layer, y] = table[layer, x]
            table[layer, x] = f
        return table


def descent(
    layers: Sequence[Layer], rules: Rules, running: Placement, start: IntArray, lowest: float
) -> Descent:
    """From ``start`` [layers, slots], at prices down to ``lowest`` or to what still matters.

    ``layers`` are without the price of moves from ``running``.
    """
    away: FloatArray = (running.copies == 0).astype(np.float64)
    scale = max(float(np.maximum(layer.arithmetic, layer.reading[:, 1]).sum()) for layer in layers)
    prices: FloatArray = scale / running.gpus * np.power(0.25, np.arange(QUARTERS + 1))
    if lowest > prices[-1]:
        prices = np.append(prices[prices > lowest], lowest)

    def of(at: int) -> IntArray:
        found: IntArray = descend(layers[at], rules, start[at], away[at], prices)
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        paths = list(pool.map(of, range(len(layers))))
    layer = np.repeat(np.arange(len(paths)), [len(path) for path in paths])
    turn = np.concatenate([np.arange(len(path)) for path in paths])
    path = np.concatenate(paths)
    order = np.lexsort((layer, turn, path[:, 0]))
    exchanges = np.column_stack([layer, path[:, 1:]])[order]
    begun = _moved(running, start)
    moved = begun + np.cumsum(_arrivals(start, exchanges, away > 0))
    return Descent(start, exchanges, prices[path[order, 0]], begun, moved)


def _moved(running: Placement, table: IntArray) -> int:
    layer = np.arange(len(table))[:, None]
    return int((running.copies[layer, table, running.gpu_of_slot] == 0).sum())


def _arrivals(start: IntArray, exchanges: IntArray, away: BoolArray) -> IntArray:
    """[exchanges] by how many each changes the slots that hold an expert from elsewhere."""
    table, size = start.tolist(), start.shape[1] // away.shape[2]
    found = np.zeros(len(exchanges), dtype=np.int64)
    new = away.astype(np.int64)
    for at, (layer, x, y, f) in enumerate(exchanges.tolist()):
        row, gone = table[layer], table[layer][x]
        found[at] = new[layer, f, x // size] - new[layer, gone, x // size]
        if y >= 0:
            found[at] += new[layer, gone, y // size] - new[layer, f, y // size]
            row[y] = gone
        row[x] = f
    return found
