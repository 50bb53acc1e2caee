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
from placer.placement import Placement, widened
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
        nodes = before.nodes if keep_nodes else 1
        contents = np.array([_fewest_moves(one, nodes) for one in kept])
        table = np.take_along_axis(table, contents[:, :, None], axis=1)
    held = before.physical_to_logical.reshape(table.shape)
    seated = [
        [_seat(old, new) for old, new in zip(*pair, strict=True)]
        for pair in zip(held.tolist(), table.tolist(), strict=True)
    ]
    return Placement(np.array(seated).reshape(layers, -1), after.experts, gpus, after.nodes)


def same_shape(before: Placement, after: Placement) -> None:
    """Raises PlacementError for two placements that cannot follow each other."""
    if before.shape != after.shape:
        raise PlacementError(
            f"{before.shape} cannot become {after.shape}: give two placements of the same shape"
        )


def _kept(before: Placement, after: Placement) -> IntArray:
    """[layers, gpus, gpus] slots that stay if GPU a (first) gets the label b (second)."""
    held = (before.copies > 0).astype(np.float32)  # float: numpy multiplies no integers fast
    wanted = after.copies.astype(np.float32)
    return np.einsum("lea,leb->lab", wanted, held, optimize=True).astype(np.int64)


def _fewest_moves(kept: IntArray, nodes: int) -> IntArray:
    """[gpus] whose content each GPU takes over. kept: [gpus, gpus] as ``_kept`` has it.

    Of equals, most GPUs keep their label.
    """
    gpus = len(kept)
    worth = kept * (gpus + 1) + np.eye(gpus, dtype=np.int64)
    return assign(worth.T, nodes)


def _seat(old: list[int], new: list[int]) -> list[int]:
    """``new`` in an order in which what is in ``old`` too keeps its place."""
    if old == new:
        return new
    arrivals, stays = list(new), []
    for expert in old:
        stays.append(expert in arrivals)
        if stays[-1]:
            arrivals.remove(expert)
    arriving = iter(arrivals)
    return [expert if stay else next(arriving) for expert, stay in zip(old, stays, strict=True)]
