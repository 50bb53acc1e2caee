"""Rounds: which copies go at the same time.

On each link a rank sends one copy and receives one at a time: a *lane*. As many lanes as its budget
holds make a round. A lane is a matching of sources to GPUs, the heaviest one where a pair is worth
what its two ends still have to do. Such a matching takes in every rank that has most to do (the
vertices that matchings cover form a matroid, on both sides at once), so that d rounds are enough
for d copies a rank, and fewer never are. This is the edge colouring of Koenig's theorem, taken one
colour at a time.

Scratch memory is what stands in the way of it: copies into slots that are not open have to be held.
So a pair is also worth more if it has a copy that finds an open slot, or that lets a held one be
committed, or of an early layer, which keeps few layers under way. Ranks that are left over because
only a last scratch slot is free take part in rings (slots.py).
"""

from dataclasses import dataclass, field

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.placement import Placement
from placer.schedule.copies import LOCAL, NETWORK, Copies, Limits, rank_loads
from placer.schedule.slots import Slots
from placer.schedule.values import Round, Transfer


@dataclass(slots=True)
class _Draft:
    """A round whose copies' slots are not known yet: what is held takes what opens later.

    left: [links, directions, nodes] copies that the nodes may still begin
    """

    left: IntArray
    drops: list[tuple[int, int]] = field(default_factory=list)
    copies: list[int] = field(default_factory=list)
    commits: list[int] = field(default_factory=list)


def rounds(
    before: Placement, after: Placement, copies: Copies, limits: Limits
) -> tuple[list[Round], Placement] | None:
    """The rounds and what stands after them; None if they cannot go on without scratch memory."""
    making = _Making(before, after, copies, limits)
    drafts = []
    while making.waiting.any():
        drafts.append(making.next())
        if not drafts[-1].copies:
            return None
    slots, gpus = making.slots, before.gpus
    columns = (copies.layer, copies.expert, copies.source, copies.gpu, slots.slot)
    transfers = [Transfer(*row) for row in zip(*(c.tolist() for c in columns), strict=True)]
    written = [
        Round(
            tuple(draft.drops),
            tuple(transfers[copy] for copy in draft.copies),
            tuple(transfers[copy] for copy in draft.commits),
            float(np.max(rank_loads(copies, gpus, draft.copies).max((1, 2)) * limits.seconds)),
        )
        for draft in drafts
    ]
    drops, twins = slots.tidy(after)
    if drops or twins:
        written.append(Round(tuple(drops), tuple(twins), tuple(twins), 0.0))
    return written, Placement(slots.table, before.experts, before.gpus, before.nodes)


class _Link:
    """The copies over one link, views of the arrays of all; ``here`` is where they stand there."""

    def __init__(self, copies: Copies, link: int, before: Placement, after: Placement) -> None:
        self.here = slice(*np.searchsorted(copies.link, (link, link + 1)).tolist())
        layer = copies.layer[self.here]
        self.source, self.gpu = copies.source[self.here], copies.gpu[self.here]
        self.early = 1 - layer / before.layers
        # Flat indices into [layers, gpus] and [layers, experts, gpus], for speed.
        self.start, self.end = layer * before.gpus + self.source, layer * before.gpus + self.gpu
        expert = layer * before.experts + copies.expert[self.here]
        self.sender = expert * before.gpus + self.source
        self.gives_up = after.copies.take(self.sender) == 0
        pair = self.source * before.gpus + self.gpu
        self.pairs, starts = np.unique(pair, return_index=True)
        self.bounds = np.append(starts, len(pair))


class _Making:
    """``waiting`` [copies] has not begun; ``todo`` [links, directions, gpus] how many of them."""

    def __init__(self, before: Placement, after: Placement, copies: Copies, limits: Limits) -> None:
        self.copies, self.limits = copies, limits
        self.gpus, self.nodes = before.gpus, before.nodes
        self.size = before.gpus // before.nodes
        self.slots = Slots(before, after, copies, limits.scratch)
        self.links = [_Link(copies, link, before, after) for link in (LOCAL, NETWORK)]
        self.waiting = np.ones(len(copies), dtype=np.bool_)
        self.todo = rank_loads(copies, before.gpus)
        self.unfinished: list[int] = []  # of a ring that does not fit into one round

    def next(self) -> _Draft:
        draft = _Draft(np.full((2, 2, self.nodes), len(self.copies)))
        draft.left[NETWORK] = self.limits.lanes[NETWORK] * self.limits.node_lanes
        if self.unfinished:
            self._begin_what_fits(draft)
        else:
            for link in self._lanes():
                self._begin(draft, self._lane(link))
            if self.limits.scratch:
                self._join_rings(draft)
        draft.commits = self.slots.finish(draft.copies)
        return draft

    def _lanes(self) -> list[int]:
        """The link of each lane of a round, such that both links have work for as many rounds."""
        most = [int(max(need.max() for need in self._needs(link))) for link in (LOCAL, NETWORK)]
        left = max(-(-most[link] // self.limits.lanes[link]) for link in (LOCAL, NETWORK))
        return [link for link in (NETWORK, LOCAL) for _ in range(-(-most[link] // left))]

    def _needs(self, link: int) -> list[IntArray]:
        """[directions, gpus] lanes that each rank still needs, and each rank's node as a whole."""
        ranks = self.todo[link]
        if link == LOCAL or self.limits.node_lanes == self.size:
            return [ranks]
        nodes = ranks.reshape(2, -1, self.size).sum(axis=2)
        return [ranks, np.repeat(-(-nodes // self.limits.node_lanes), self.size, axis=1)]

    def _pressure(self, link: int) -> FloatArray:
        """[directions, gpus] what an end of a pair is worth by what it still has to do.

        Having most to do outweighs all that pairs are worth besides, at most 8 each.
        """
        needs = self._needs(link)
        most = max(need.max() for need in needs)
        return np.sum([need / most + 8 * self.gpus * (need == most) for need in needs], axis=0)

    def _lane(self, which: int) -> list[int]:
        """Copies over a link, at most one from and to each rank."""
        link, slots = self.links[which], self.slots
        lands = slots.opened.take(link.end) > 0
        may = self.waiting[link.here] & (lands | (slots.room[link.gpu] > 1))
        if not may.any():
            return []
        frees = link.gives_up & (slots.sends.take(link.sender) == 1)
        helps = frees & (slots.held.take(link.start) > 0)
        out, into = self._pressure(which)
        worth = 1 + lands + helps + link.early + out[link.source] + into[link.gpu]
        worth[~may] = 0
        weight = np.zeros((self.gpus, self.gpus))
        weight.put(link.pairs, np.maximum.reduceat(worth, link.bounds[:-1]))
        node_lanes = self.limits.node_lanes if which == NETWORK else self.size
        chosen = []
        for pair in np.searchsorted(link.pairs, _matching(weight, self.size, node_lanes)):
            first, last = link.bounds[pair : pair + 2]
            chosen.append(int(link.here.start + first + worth[first:last].argmax()))
        return chosen

    def _join_rings(self, draft: _Draft) -> None:
        """Rings of ranks that this round leaves idle for want of more than a last scratch slot."""
        link, source, gpu = self.copies.link, self.copies.source, self.copies.gpu
        idle = np.ones(self.gpus, dtype=np.bool_)
        idle[source[draft.copies]] = idle[gpu[draft.copies]] = False
        room = draft.left > 0
        may = self.waiting & idle[source] & idle[gpu]
        may &= room[link, 0, source // self.size] & room[link, 1, gpu // self.size]
        if not (may & (self.slots.room[gpu] <= 1)).any():
            return
        for ring in self.slots.rings(may):
            to_begin = [copy for copy in ring if self.waiting[copy]]
            if not draft.copies or self._fits(to_begin, draft):
                self.slots.join(ring)
                self.unfinished = to_begin
                self._begin_what_fits(draft)
                if self.unfinished:
                    return

    def _begin_what_fits(self, draft: _Draft) -> None:
        for copy in self.unfinished:
            if self._fits([copy], draft):
                self._begin(draft, [copy])
        self.unfinished = [copy for copy in self.unfinished if self.waiting[copy]]

    def _fits(self, chosen: list[int], draft: _Draft) -> bool:
        return bool((draft.left - self._by_node(chosen) >= 0).all())

    def _begin(self, draft: _Draft, chosen: list[int]) -> None:
        self.waiting[chosen] = False
        self.todo -= rank_loads(self.copies, self.gpus, chosen)
        draft.left -= self._by_node(chosen)
        draft.copies += chosen
        draft.drops += [drop for copy in chosen if (drop := self.slots.begin(copy))]

    def _by_node(self, chosen: list[int]) -> IntArray:
        """[links, directions, nodes] copies"""
        ranks = rank_loads(self.copies, self.gpus, chosen)
        return ranks.reshape(2, 2, self.nodes, self.size).sum(axis=3)


def _matching(weight: FloatArray, size: int, node_lanes: int) -> IntArray:
    """[pairs] source * gpus + gpu of the heaviest matching within the nodes' limits.

    weight: [gpus, gpus], 0 for none. Each node of ``size`` GPUs may send ``node_lanes`` and receive
    as many: it gets partners of its own, too dear to refuse, for those of its GPUs that must not.
    """
    from scipy.optimize import linear_sum_assignment  # 50 MB: only where rounds are made

    gpus = len(weight)
    partners = np.repeat(np.arange(gpus // size), size - node_lanes)
    full = np.zeros((gpus + len(partners), gpus + len(partners)))
    full[:gpus, :gpus] = weight
    own = (np.arange(gpus)[:, None] // size == partners) * (gpus * weight.max() + 1)
    full[:gpus, gpus:], full[gpus:, :gpus] = own, own.T
    rows, columns = linear_sum_assignment(full, maximize=True)
    real = (rows < gpus) & (columns < gpus)
    pairs = rows[real] * gpus + columns[real]
    return pairs[weight.reshape(-1)[pairs] > 0]
