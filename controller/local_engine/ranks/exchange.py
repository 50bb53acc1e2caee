"""How much memory ranks need, each for itself and all together."""

import math

import numpy as np

from controller.elastic.arena import Layout
from controller.local_engine.model.weights import ITEM, Checkpoint, Float32, Sizes
from placer.arrays import IntArray
from placer.memory.device import Device, Run, padded
from placer.memory.ranges import Range

CHUNK = 16  # prompt tokens that a rank computes in a step, at most
SEATS = 16  # requests that a rank serves at once: its KV cache has room for one in each
TOKENS = CHUNK + SEATS  # of a rank in a step, at most


def seat_shape(sizes: Sizes) -> tuple[int, ...]:
    """Of a sequence's keys and values."""
    return (sizes.layers, 2, sizes.kv_heads, sizes.context, sizes.head_dim)


def layout(device: Device, checkpoint: Checkpoint, pages: int) -> Layout:
    """Of each rank's arena. pages: of experts, in all layers together"""
    sizes = checkpoint.sizes
    seat_size = ITEM * math.prod(seat_shape(sizes))
    rest = (checkpoint.dense_size, seat_size, SEATS, ITEM * sizes.page, pages)
    return Layout(device.granularity, *rest)


class Exchange:
    """What goes from rank to rank in a step: of a group of ranks, in memory of its own.

    states:  [ranks, TOKENS, hidden] what a rank's tokens bring to this layer's experts
    outputs: [ranks, TOKENS, top_k, hidden] what came of it, written by the slots' ranks
    slots:   [ranks, TOKENS, top_k] where they go: physical experts, EMPTY for none
    """

    def __init__(self, device: Device, descriptor: int, sizes: Sizes, ranks: int) -> None:
        shapes = _shapes(sizes, ranks)
        self._range = Range(device, [Run(descriptor, 0, exchange_size(device, sizes, ranks))])
        numbers, ends = self._range.array(np.float32), np.cumsum([math.prod(of) for of in shapes])
        states, outputs, slots, _ = np.split(numbers, ends)
        self.states: Float32 = states.reshape(shapes[0])
        self.outputs: Float32 = outputs.reshape(shapes[1])
        self.slots: IntArray = slots.view(np.int32).reshape(shapes[2])

    def close(self) -> None:
        del self.states, self.outputs, self.slots
        self._range.close()


def exchange_size(device: Device, sizes: Sizes, ranks: int) -> int:
    """Bytes."""
    return padded(ITEM * sum(map(math.prod, _shapes(sizes, ranks))), device.granularity)


def _shapes(sizes: Sizes, ranks: int) -> tuple[tuple[int, ...], ...]:
    tokens = ranks, TOKENS
    return (
        (*tokens, sizes.hidden),
        (*tokens, sizes.top_k, sizes.hidden),
        (*tokens, sizes.top_k),
    )
