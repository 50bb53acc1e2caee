"""Moves from a placement in the order of what they win, as far as one likes to go.

Moves get cheaper, by sixteenths, from a price at which none pays; at each price every layer's best
exchanges are made. All layers' exchanges are then put in the order of what a move wins, those of a
layer staying in theirs, as each builds on the one before. So the first moves win most, and what the
first share of them wins is the best that a greedy search finds for so many.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.optimizers.joint.search import Layer, Rules, descend
from placer.placement import Placement

SIXTEENTHS = 3  # from a price of a GPU's seconds in a layer, before the lowest
THREADS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Descent:
    """
    start:     [layers, slots] where it begins
    exchanges: [exchanges, 4] layer, and slot x that gets expert f; slot y, if not -1, gets x's
    worth:     [exchanges] seconds a step that a move wins there, never rising
    begun:     slots moved from the placement that runs, where it begins
    moved:     [exchanges] and after each
    """

    start: IntArray
    exchanges: IntArray
    worth: FloatArray
    begun: int
    moved: IntArray

    def until(self, most: float, price: float = 0.0) -> IntArray:
        """[layers, slots] with at most so many slots moved, by moves that pay at the price."""
        fits = np.flatnonzero((self.moved <= most) & (self.worth >= price))
        table = self.start.copy()
        for layer, x, y, f in self.exchanges[: fits[-1] + 1 if len(fits) else 0].tolist():
            if y >= 0:
                table[layer, y] = table[layer, x]
            table[layer, x] = f
        return table


def descent(
    layers: Sequence[Layer], rules: Rules, running: Placement, start: IntArray, lowest: float
) -> Descent:
    """From ``start`` [layers, slots], at prices down to ``lowest``.

    ``layers`` are without the price of moves from ``running``.
    """
    away: FloatArray = (running.copies == 0).astype(np.float64)
    scale = max(float(np.maximum(layer.arithmetic, layer.reading[:, 1]).sum()) for layer in layers)
    prices: FloatArray = scale / running.gpus * np.power(1 / 16, np.arange(SIXTEENTHS + 1))
    prices = np.append(prices[prices > lowest], lowest)

    def of(at: int) -> tuple[IntArray, FloatArray]:
        found: tuple[IntArray, FloatArray] = descend(layers[at], rules, start[at], away[at], prices)
        return found

    with ThreadPoolExecutor(THREADS) as pool:
        paths, worth = zip(*pool.map(of, range(len(layers))), strict=True)
    layer = np.repeat(np.arange(len(paths)), [len(path) for path in paths])
    path, each = np.concatenate(paths), np.concatenate(worth)
    order = np.lexsort((layer, -each))  # stable: a layer's exchanges stay in their order
    exchanges = np.column_stack([layer, path[:, :3]])[order]
    begun = _moved(running, start)
    moved = begun + np.cumsum(path[order, 3])
    return Descent(start, exchanges, each[order], begun, moved)


def _moved(running: Placement, table: IntArray) -> int:
    layer = np.arange(len(table))[:, None]
    return int((running.copies[layer, table, running.gpu_of_slot] == 0).sum())
