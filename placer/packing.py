"""Packing by load: DeepSeek's expert-parallel load balancer, all layers at once.

Source: github.com/deepseek-ai/EPLB, whose arithmetic (float32) and tie-breaks (lowest index) are
kept. Every step is one numpy operation over all layers, which is what makes it fast.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from placer.arrays import BoolArray, FloatArray, IntArray

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
    free = np.tile(np.arange(packs) * capacity, rows)  # the next position in each pack
    closing = np.zeros(items, dtype=np.float32)
    closing[capacity - 1 :: capacity] = np.inf  # a full pack is never the lightest again
    position = np.empty((items, rows), dtype=np.intp)
    first, flat = np.arange(rows) * packs, total.reshape(-1)
    for item in range(items):
        lightest = first + total.argmin(axis=1)
        position[item] = at = free[lightest]
        free[lightest] = at + 1
        flat[lightest] += ordered[item] + closing[at]
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
    held = table.reshape(len(table), gpus, -1)  # a view: exchanges go into the table
    cell = np.arange(0, load.size, load.shape[1])[:, None] + table
    count = np.bincount(cell.ravel(), minlength=load.size).reshape(load.shape)
    duplicates = _second_replicas(held)
    while len(duplicates):
        first = np.unique(duplicates[:, 0], return_index=True)[1]  # of each layer
        at = duplicates[first]
        at = at[_are_second(held, at)]
        for width in (gpus // nodes, gpus):
            if len(at):
                at = at[~_part(held, count, load, at, width)]
        duplicates = np.delete(duplicates, first, axis=0)
    return table


def _second_replicas(held: IntArray) -> IntArray:
    """[duplicates, 3] layer, GPU and slot of each replica that its GPU has in an earlier slot."""
    ordered = np.sort(held, axis=2)
    layer, gpu = np.nonzero((ordered[:, :, 1:] == ordered[:, :, :-1]).any(axis=2))
    own = held[layer, gpu]
    earlier = np.tril(own[:, :, None] == own[:, None, :], k=-1).any(axis=2)
    row, slot = np.nonzero(earlier)
    return np.column_stack([layer[row], gpu[row], slot])


def _are_second(held: IntArray, at: IntArray) -> BoolArray:
    """[duplicates] whether they still are."""
    layer, gpu, slot = at.T
    same = held[layer, gpu] == held[layer, gpu, slot][:, None]
    return same.argmax(axis=1) < slot


def _part(held: IntArray, count: IntArray, load: FloatArray, at: IntArray, width: int) -> BoolArray:
    """Part duplicates, of a layer each, with the help of the ``width`` GPUs around; [duplicates]
    whether these could help.

    count: [layers, experts] replicas; at: [duplicates, 3]
    """
    layer, gpu, slot = at.T
    each = load[layer] / np.maximum(count[layer], 1)
    row = np.arange(len(at))[:, None]
    cell, size = row[:, :, None], held.shape[2]
    around = gpu[:, None] // width * width + np.arange(width)
    own, theirs = held[layer, gpu], held[layer[:, None], around]
    expert = held[layer, gpu, slot]
    here, there = (np.zeros(each.shape, dtype=np.bool_) for _ in range(2))
    here[row, own] = there[cell, theirs] = True

    has = (theirs == expert[:, None, None]).any(axis=2, keepdims=True)
    can = ~(here[cell, theirs] | has)
    weight = each[cell, theirs]
    gain = each[row, expert[:, None]][:, :, None] - weight
    left = each[row, own].sum(axis=1)[:, None, None] - gain
    heavier = np.maximum(left, weight.sum(axis=2, keepdims=True) + gain)
    best = np.where(can, heavier, np.inf).reshape(len(at), -1).argmin(axis=1)
    exchanged: BoolArray = can.any(axis=(1, 2))
    this = layer[exchanged], gpu[exchanged], slot[exchanged]
    that = this[0], around[exchanged, best[exchanged] // size], best[exchanged] % size
    held[this], held[that] = held[that], held[this]

    lacks = there & ~here
    replaced = ~exchanged & lacks.any(axis=1)
    heaviest = np.where(lacks, each, -1.0).argmax(axis=1)
    layer, gpu, slot, expert, heaviest = (
        one[replaced] for one in (layer, gpu, slot, expert, heaviest)
    )
    held[layer, gpu, slot] = heaviest
    count[layer, expert] -= 1
    count[layer, heaviest] += 1
    return exchanged | replaced


def _inverse(permutation: IntArray) -> IntArray:
    inverse = np.empty_like(permutation)
    np.put_along_axis(
        inverse, permutation, np.broadcast_to(np.arange(permutation.shape[1]), permutation.shape), 1
    )
    return inverse
