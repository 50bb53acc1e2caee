"""The same placement with its GPUs' labels and slots chosen so that the fewest slots move.

Which of two equal GPUs is called 3 is of no consequence for balance: an optimizer's answer is one
of many that differ in labels alone. The one nearest to what runs today is an assignment problem:
giving the experts of GPU a to GPU b keeps as many slots as they have experts in common.
"""

from typing import Literal

import numpy as np

from placer.arrays import IntArray
from placer.errors import PlacementError
from placer.labels import assign
from placer.placement import EMPTY, Placement, widened
from placer.problem import Problem

Relabel = Literal["never", "once", "layers"]


def fewest_moves(problem: Problem, after: Placement) -> Placement:
    """``after`` with the labels that move the fewest slots from the problem's current placement, if
    there is one. Labels are free, but for what joins the layers: hops, or the memory of GPUs that
    hold more experts in one layer than in another."""
    before, objective = problem.current, problem.objective
    if before is None:
        return after
    wide = max(before.slots_per_gpu, after.slots_per_gpu)
    joined = objective.uneven or objective.dispatch == "coherent"
    relabel: Relabel = "once" if joined else "layers"
    return match_slots(widened(before, wide), widened(after, wide), relabel)


def match_slots(
    before: Placement, after: Placement, relabel: Relabel = "never", keep_nodes: bool = True
) -> Placement:
    """``after`` with the fewest slots to move from ``before``; an expert that stays on its GPU
    keeps its slot.

    relabel:    ``never``: GPUs keep their content; ``once``: one permutation of the GPUs for all
                layers, which leaves every affinity between layers as it is; ``layers``: each layer
                its own, where no cost joins the layers (allgather, dedup)
    keep_nodes: GPUs that share a node go on doing so
    """
    same_shape(before, after)
    layers, gpus = before.layers, before.gpus
    table = after.physical_to_logical.reshape(layers, gpus, -1)
    if relabel != "never":
        kept = _kept(before, after)
        if relabel == "once":
            kept = kept.sum(axis=0, keepdims=True)
        # Of equals, most GPUs keep their label.
        worth = kept * (gpus + 1) + np.eye(gpus, dtype=np.int64)
        contents = assign(worth.swapaxes(1, 2), before.nodes if keep_nodes else 1)
        table = np.take_along_axis(table, contents[:, :, None], axis=1)
    held = before.physical_to_logical.reshape(layers * gpus, -1)
    seated = _seat(held, table.reshape(held.shape))
    return Placement(seated.reshape(layers, -1), after.experts, gpus, after.nodes)


def same_shape(before: Placement, after: Placement) -> None:
    """Raises PlacementError for two placements that cannot follow each other."""
    if before.shape != after.shape:
        raise PlacementError(
            f"{before.shape} cannot become {after.shape}: give two placements of the same shape"
        )


def _kept(before: Placement, after: Placement) -> IntArray:
    """[layers, gpus, gpus] slots that stay if GPU a (first) gets the label b (second)."""
    layers, gpus, table = before.layers, before.gpus, after.physical_to_logical
    stays = before.held_in(gpus)[np.arange(layers)[:, None], table]
    stays[table == EMPTY] = False
    by_slot = stays.reshape(layers, gpus, -1, gpus).astype(np.uint16)  # more than slots of a GPU
    return np.einsum("lasb->lab", by_slot).astype(np.int64)  # several times as fast as sum()


def _seat(old: IntArray, new: IntArray) -> IntArray:
    """[rows, slots] ``new`` in an order in which what is in ``old`` too keeps its place."""
    seated, stays = old.copy(), np.zeros(old.shape, dtype=np.bool_)
    arrives = np.ones(old.shape, dtype=np.bool_)
    flat, row = arrives.reshape(-1), np.arange(0, old.size, old.shape[1])
    for slot, expert in enumerate(old.T):
        same = arrives & (new == expert[:, None])
        first = row + same.argmax(axis=1)
        stays[:, slot] = stay = same.reshape(-1)[first]
        flat[first] ^= stay
    seated[~stays] = new[arrives]
    return seated
