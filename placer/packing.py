"""Packing by load: DeepSeek's expert-parallel load balancer, all layers at once.

Source: github.com/deepseek-ai/EPLB, whose arithmetic (float32) and tie-breaks (lowest index) are
kept. Every step is one numpy operation over all layers, which is what makes it fast.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from placer.arrays import FloatArray, IntArray

Weights = npt.NDArray[np.float32]


def hierarchical(groups: int, nodes: int) -> bool:
    """Whether every node gets whole groups; if not, the global policy serves."""
    return groups % nodes == 0


def rebalance(
    load: npt.NDArray[np.number[Any]], slots: int, groups: int, nodes: int, gpus: int
) -> IntArray:
    """[layers, slots] the logical expert of each slot, GPU after GPU, as DeepSeek's file gives it.

    load: [layers, experts]
    """
    if not hierarchical(groups, nodes):
        groups = nodes = 1
    weight = load.astype(np.float32)
    layers, experts = weight.shape
    size = experts // groups

    # Logical experts by node: [layers, experts] in packed order.
    group_load = weight.reshape(layers, groups, size).sum(axis=2)
    position = _pack(group_load, nodes)
    group_at = _inverse(position)
    by_node = (group_at[:, :, None] * size + np.arange(size)).reshape(layers * nodes, -1)

    row = np.repeat(np.arange(layers), nodes)[:, None]
    node_weight = weight[row, by_node]
    local, count = _replicate(node_weight, slots // nodes)
    rows = np.arange(len(local))[:, None]
    each = (node_weight / count)[rows, local]

    slot_of = _pack(each, gpus // nodes)
    packed = np.empty_like(local)
    packed[rows, slot_of] = by_node[rows, local]
    return packed.reshape(layers, slots)


def _replicate(weight: Weights, slots: int) -> tuple[IntArray, IntArray]:
    """[rows, slots] the expert of each replica, and [rows, experts] replicas of each expert."""
    rows, experts = weight.shape
    chosen = np.empty((rows, slots), dtype=np.intp)
    chosen[:, :experts] = np.arange(experts)
    count = np.ones((rows, experts), dtype=np.int64)
    each = weight.copy()
    flat_each, flat_count, flat_weight = each.reshape(-1), count.reshape(-1), weight.reshape(-1)
    base = np.arange(rows) * experts
    for slot in range(experts, slots):
        expert = each.argmax(axis=1)
        chosen[:, slot] = expert
        at = base + expert
        flat_count[at] += 1
        flat_each[at] = flat_weight[at] / flat_count[at].astype(np.float32)
    return chosen, count


def _pack(weight: Weights, packs: int) -> IntArray:
    """[rows, items] position of each item when packs of equal size are laid end to end."""
    rows, items = weight.shape
    capacity = items // packs
    if capacity == 1:
        return np.broadcast_to(np.arange(items), weight.shape)
    heaviest = np.argsort(-weight, axis=1, kind="stable")
    ordered = np.take_along_axis(weight, heaviest, axis=1).T.copy()
    total = np.zeros((rows, packs), dtype=np.float32)
    filled = np.zeros(rows * packs, dtype=np.intp)
    start = np.tile(np.arange(packs) * capacity, rows)
    closing = np.zeros(capacity + 1, dtype=np.float32)
    closing[capacity] = np.inf  # a full pack is never the lightest again
    position = np.empty((items, rows), dtype=np.intp)
    first, flat = np.arange(rows) * packs, total.reshape(-1)
    for item in range(items):
        lightest = first + total.argmin(axis=1)
        used = filled[lightest]
        position[item] = start[lightest] + used
        filled[lightest] = used + 1
        flat[lightest] += ordered[item] + closing[used + 1]
    result = np.empty((rows, items), dtype=np.intp)
    np.put_along_axis(result, heaviest, position.T, axis=1)
    return result


def separate(table: IntArray, load: FloatArray, gpus: int, nodes: int) -> IntArray:
    """``table`` with no expert twice on a GPU.

    A second replica is exchanged with a slot of another GPU: of those that make no new duplicate,
    the one that leaves the heavier of the two GPUs lightest. If every GPU has the expert already,
    its slot goes to the heaviest replica that this GPU lacks. Its node is tried first, then all.
    """
    table = table.copy()
    size = gpus // nodes
    for layer, row in enumerate(table):
        held = row.reshape(gpus, -1)  # a view: exchanges go into the table
        while duplicates := _second_replicas(held):
            gpu, slot = duplicates[0]
            each = load[layer] / np.maximum(np.bincount(row, minlength=load.shape[1]), 1)
            first = gpu // size * size
            node, everywhere = range(first, first + size), range(gpus)
            if not any(_exchange(held, each, (gpu, slot), scope) for scope in (node, everywhere)):
                break  # more slots a GPU than experts
    return table


def _exchange(held: IntArray, each: FloatArray, at: tuple[int, int], scope: range) -> bool:
    """Part one duplicate with the help of the GPUs in ``scope``; False if they cannot."""
    gpu, expert = at[0], held[at]
    weight = each[held].sum(axis=1)
    exchanges = [
        (max(weight[gpu] - gain, weight[other] + gain), other, slot)
        for other in scope
        if expert not in held[other]
        for slot in range(held.shape[1])
        if held[other, slot] not in held[gpu]
        for gain in [each[expert] - each[held[other, slot]]]
    ]
    if exchanges:
        _, other, slot = min(exchanges)
        held[at], held[other, slot] = held[other, slot], expert
        return True
    lacking = np.setdiff1d(held[scope], held[gpu])
    if len(lacking):
        held[at] = lacking[each[lacking].argmax()]
    return len(lacking) > 0


def _second_replicas(held: IntArray) -> list[tuple[int, int]]:
    """(gpu, slot) of every replica that its GPU holds already in an earlier slot."""
    same = held[:, :, None] == held[:, None, :]
    earlier = np.tril(same, k=-1).any(axis=2)
    return [(int(gpu), int(slot)) for gpu, slot in np.argwhere(earlier)]


def _inverse(permutation: IntArray) -> IntArray:
    inverse = np.empty_like(permutation)
    np.put_along_axis(
        inverse, permutation, np.broadcast_to(np.arange(permutation.shape[1]), permutation.shape), 1
    )
    return inverse
