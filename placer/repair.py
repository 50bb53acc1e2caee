"""A running map that breaks a rule, mended with the fewest moves.

Rules: every expert has a slot; no GPU holds an expert twice, unless duplicates are allowed; with
``survive_node`` every expert is on two nodes, with ``keep_groups`` each group on one. Slots in use
stay in use; empty ones may stay empty.

Layers are independent, and each is a flow: from the source through an expert and a node to a GPU
and the sink. An expert's first unit into each of ``least`` nodes is owed to the rules, and so are a
GPU's slots in use. As many units as a GPU has copies of the expert are free, the first one to
another GPU is a move, and more are only for slots that must be filled. The cheapest flow has whole
units, so the number of moves is exact.

Of maps with as few moves it is one whose GPUs' loads have about the smallest sum of squares: what
each copy alone adds to it breaks ties, and then each new copy in turn gives way to the expert that
suits its GPU best. (Maps of 4 experts reach 96% of the best balance; joint goes on from there.)

Which node has which group is decided first, by a programme of groups x nodes variables: a node with
u slots in use that keeps k copies and lacks m experts takes max(u - k, m) moves, since what it
lacks goes where something has to go anyway. (Fewer may do where duplicates are allowed, too.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from placer.arrays import BoolArray, FloatArray, IntArray
from placer.flow import SINK, SOURCE, Arcs, cheapest_flow
from placer.placement import EMPTY, Placement
from placer.problem import Problem
from placer.schedule import match_slots

FINEST = 1000  # steps of what breaks ties
TURNS = 3  # of each new copy


def faults(problem: Problem) -> list[str]:
    """What is wrong with the map that runs, a sentence a kind; [] if it keeps the rules."""
    found = _Faults.of(problem)
    kinds = [
        (found.lost, "expert {1} of layer {0} was lost"),
        (found.twice, "expert {1} of layer {0} was on GPU {2} more than once"),
        (found.alone, "expert {1} of layer {0} was on one node alone"),
        (found.torn, "group {1} of layer {0} was spread over nodes"),
    ]
    sentences = []
    for where, text in kinds:
        if count := int(where.sum()):
            more = f" (and {count - 1} more)" if count > 1 else ""
            sentences.append(text.format(*np.argwhere(where)[0].tolist()) + more)
    return sentences


def repair(problem: Problem, fill: bool = False) -> Placement:
    """The running map with the fewest moves that mend it; itself if there is nothing to mend.

    fill: put an expert into every empty slot, too

    The problem's limits must not clash.
    """
    running = problem.start
    broken = _Faults.of(problem).layers
    if fill:
        broken |= (running.physical_to_logical == EMPTY).any(axis=1)
    if not broken.any():
        return running
    mended = running.physical_to_logical.copy()
    layers = np.flatnonzero(broken).tolist()
    mended[broken] = _fewest(problem, running, running.slots_per_gpu, layers, fill)
    return match_slots(running, problem.placement(mended))


def refit(problem: Problem, running: Placement, fill: bool = False) -> Placement:
    """The problem's slots filled with the fewest moves from a map with other slots.

    running: on the problem's GPUs, with any number of slots a GPU, and may lack experts. Of what a
             GPU holds as much stays as fits.
    fill:    put an expert into every slot; if not, a GPU has as many as it had, and what rules need

    The problem's limits must not clash.
    """
    size = problem.slots // problem.topology.gpus
    return problem.placement(_fewest(problem, running, size, range(running.layers), fill))


def _fewest(
    problem: Problem, running: Placement, size: int, layers: Sequence[int], fill: bool
) -> IntArray:
    """[layers, slots] what those layers hold with the fewest moves; on a GPU, ids ascend.

    size: slots of a GPU
    """
    table = np.full((len(layers), running.gpus, size), EMPTY)
    for of_layer, layer in zip(table, layers, strict=True):
        held = _Layer.of(problem, running, size, layer, fill).mended()
        for gpu, row in enumerate(of_layer):
            experts = np.repeat(np.arange(len(held)), held[:, gpu])
            row[: len(experts)] = experts
    return table.reshape(len(layers), -1)


@dataclass(frozen=True, slots=True, eq=False)
class _Faults:
    """lost, alone: [layers, experts]; twice: [layers, experts, gpus]; torn: [layers, groups]"""

    lost: BoolArray
    twice: BoolArray
    alone: BoolArray
    torn: BoolArray

    @classmethod
    def of(cls, problem: Problem) -> "_Faults":
        objective, model, running = problem.objective, problem.model, problem.start
        content = running.content(running.gpus)
        layer, gpu, at = np.nonzero(content.used & ~content.first)
        twice = np.zeros((running.layers, running.experts, running.gpus), dtype=np.bool_)
        twice[layer, content.experts[layer, gpu, at], gpu] = not objective.allow_duplicates
        on_node = running.held_in(running.nodes)
        by_group = on_node.reshape(running.layers, model.groups, -1, running.nodes)
        # einsum is several times as fast as any() and sum() along short axes.
        groups = np.einsum("lgen->lgn", by_group).sum(axis=2)
        nodes = np.einsum("len->le", on_node.astype(np.uint16))
        return cls(
            lost=nodes == 0,
            twice=twice,
            alone=(nodes == 1) & objective.survive_node,
            torn=(groups > 1) & objective.keep_groups,
        )

    @property
    def layers(self) -> BoolArray:
        """[layers] those with a fault"""
        kinds = (self.lost, self.twice, self.alone, self.torn)
        return np.logical_or.reduce([kind.reshape(len(kind), -1).any(axis=1) for kind in kinds])


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer of the running map, and the rules.

    held:    [experts, gpus] copies that may stay
    may:     [experts, gpus] whether an expert may be there
    in_use:  [gpus] slots that must hold an expert
    load:    [experts] tokens
    least:   parts of the cluster that each expert must be in, of ``parts`` equal ones
    again:   whether a GPU may hold an expert twice
    """

    held: IntArray
    may: BoolArray
    in_use: IntArray
    size: int
    load: FloatArray
    least: int
    parts: int
    again: bool

    @classmethod
    def of(
        cls, problem: Problem, running: Placement, size: int, layer: int, fill: bool
    ) -> "_Layer":
        objective, row = problem.objective, running.physical_to_logical[layer]
        used = row != EMPTY
        held = np.zeros((running.experts, running.gpus), dtype=np.int64)
        np.add.at(held, (row[used], running.gpu_of_slot[used]), 1)
        if not objective.allow_duplicates:
            held = np.minimum(held, 1)
        in_use = np.full(running.gpus, size)
        if not fill:
            in_use = np.minimum(in_use, used.reshape(running.gpus, -1).sum(axis=1))
        may = np.ones(held.shape, dtype=np.bool_)
        if objective.keep_groups:
            node = _node_of_group(held, in_use, problem)
            may = np.repeat(node, len(held) // len(node))[:, None] == running.node_of_gpu
        return cls(
            held=held,
            may=may,
            in_use=in_use,
            size=size,
            load=problem.profile.load[layer],
            least=2 if objective.survive_node else 1,
            parts=running.nodes if objective.survive_node else 1,
            again=objective.allow_duplicates,
        )

    def mended(self) -> IntArray:
        """[experts, gpus] copies"""
        experts, gpus = self.held.shape
        slots = self.size * gpus
        # No sum of ties outweighs a move, and no sum of moves what is owed.
        move = 2 * slots * FINEST + 1
        owed = slots * 3 * move
        expert, gpu = np.nonzero(self.may)
        part = gpu * self.parts // gpus
        stays = np.maximum(self.held, 1)[expert, gpu]
        price = (np.where(self.held > 0, 0, move) + self._ties())[expert, gpu]

        of_expert = 2 + np.arange(experts)
        of_part = 2 + experts + np.arange(experts * self.parts)
        of_gpu = 2 + experts + len(of_part) + np.arange(gpus)
        into = of_part[expert * self.parts + part]
        columns = [
            # tail, head, capacity, cost
            (SOURCE, of_expert, self.least, -owed),
            (np.repeat(of_expert, self.parts), of_part, 1, 0),
            (SOURCE, of_part, slots, 0),
            (into, of_gpu[gpu], stays, price),
            (into, of_gpu[gpu], self.again * self.size, 2 * move),
            (of_gpu, SINK, self.in_use, -owed),
            (of_gpu, SINK, self.size - self.in_use, 0),
        ]
        rows = [np.broadcast_arrays(*row) for row in columns]
        units = cheapest_flow(
            Arcs(*(np.concatenate(column) for column in zip(*rows, strict=True))), slots
        )
        first = experts + 2 * len(of_part)
        copies = np.zeros((experts, gpus), dtype=np.int64)
        copies[expert, gpu] = units[first : first + 2 * len(expert)].reshape(2, -1).sum(axis=0)
        return self._exchanged(copies)

    def _ties(self) -> IntArray:
        """[experts, gpus] what a copy adds to the sum of squares of the GPUs' loads: a new one, or
        one that stays, over its being dropped; everything else as it is."""
        replicas = self.held.sum(axis=1)[:, None]
        now, more, fewer = (
            self.load[:, None] / np.maximum(replicas + change, 1) for change in (0, 1, -1)
        )
        weight = (now * self.held).sum(axis=0)
        beside = (self.held @ weight)[:, None]  # of the GPUs that hold the expert, together
        new = more * (2 * weight + more)
        new += (more - now) * (2 * beside + replicas * (more - now))
        gone = -now * (2 * weight - now)
        gone += (fewer - now) * (2 * (beside - weight) + (replicas - 1) * (fewer - now))
        adds = np.where(self.held > 0, -gone, new)
        return np.rint(adds * (FINEST / max(float(np.abs(adds).max()), 1e-300))).astype(np.int64)

    def _exchanged(self, copies: IntArray) -> IntArray:
        """``copies`` with each new one in turn exchanged for the expert with which the GPUs' loads
        have the smallest sum of squares."""
        for _ in range(TURNS):
            before = copies.copy()
            for expert, gpu in np.argwhere((copies > 0) & (self.held == 0)).tolist():
                copies[expert, gpu] -= 1
                can = self.may[:, gpu] & (self.held[:, gpu] + copies[:, gpu] == 0)
                if can[expert] and self._is_enough(copies[expert]):
                    expert = int(np.where(can, self._added(copies, gpu), np.inf).argmin())
                copies[expert, gpu] += 1
            if (copies == before).all():
                break
        return copies

    def _is_enough(self, copies: IntArray) -> bool:
        """Of one expert. copies: [gpus]"""
        return int(copies.reshape(self.parts, -1).any(axis=1).sum()) >= self.least

    def _added(self, copies: IntArray, gpu: int) -> FloatArray:
        """[experts] what another copy, where there is none, adds to the squares of the loads."""
        replicas = copies.sum(axis=1)
        now, more = self.load / np.maximum(replicas, 1), self.load / (replicas + 1)
        weight = now @ copies
        change = more - now
        others: FloatArray = change * (2 * (copies @ weight) + change * (copies**2).sum(axis=1))
        return others + more * (2 * weight[gpu] + more)


def _node_of_group(held: IntArray, in_use: IntArray, problem: Problem) -> IntArray:
    """[groups] the node where each is to be, for the fewest moves. Arguments as of ``_Layer``."""
    from scipy.optimize import LinearConstraint, milp  # 50 MB: only where groups change nodes

    groups, nodes = problem.model.groups, problem.topology.nodes
    size = len(held) // groups
    by_node = held.reshape(groups, size, nodes, -1)
    kept = by_node.sum(axis=(1, 3))
    lacks = size - by_node.any(axis=3).sum(axis=1)
    used = in_use.reshape(nodes, -1)
    # Experts without which a node cannot keep its slots in use.
    fewest = used.max(axis=1)
    if problem.objective.allow_duplicates:
        fewest = np.minimum(fewest, 1)

    # Variables: groups x nodes that are 0 or 1, then the moves of each node.
    one, each = np.eye(nodes), np.ones((1, groups))
    on_node = np.kron(each, one)  # sums over the groups of a node
    moves = np.eye(nodes)
    once = np.hstack([np.kron(np.eye(groups), np.ones((1, nodes))), np.zeros((groups, nodes))])
    rules = [
        LinearConstraint(once, 1, 1),
        LinearConstraint(np.hstack([on_node * kept.ravel(), moves]), used.sum(axis=1), np.inf),
        LinearConstraint(np.hstack([-on_node * lacks.ravel(), moves]), 0, np.inf),
        LinearConstraint(np.hstack([on_node * size, 0 * moves]), fewest, problem.slots // nodes),
    ]
    count = groups * nodes
    cost = np.repeat([0.0, 1.0], [count, nodes])
    found = milp(cost, integrality=1 - cost, constraints=rules, options={"mip_rel_gap": 0})
    assert found.x is not None, found.message  # the planner refuses limits that clash
    node: IntArray = found.x[:count].reshape(groups, nodes).argmax(axis=1)
    return node
