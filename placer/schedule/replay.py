"""Whether a schedule may be carried out: a plain replay that shares no code with its making."""

from collections import Counter

from placer.placement import EMPTY, Placement
from placer.schedule.values import Budget, MigrationSchedule, Round, Transfer


def faults(
    schedule: MigrationSchedule,
    before: Placement,
    after: Placement,
    expert_bytes: int,
    budget: Budget,
) -> list[str]:
    """Every rule that the rounds break from ``before`` to ``after``, a sentence each; empty is a
    pass.

    Rules: sources hold what they send; ranks, nodes and scratch memory keep to the budget; no
    expert ever is without a slot; in the end each GPU has the experts that ``after`` gives it, and
    the schedule says in which slots.
    """
    replay = _Replay(before, expert_bytes, budget)
    found = []
    for number, round in enumerate(schedule.rounds):
        found += [f"round {number}: {fault}" for fault in replay.play(round)]
    if replay.arriving:
        found.append(f"{len(replay.arriving)} copies are never committed")
    if replay.table != schedule.after.physical_to_logical.tolist():
        found.append("the schedule does not end in the slots that it says")
    goal = before if schedule.reason else after
    if _contents(replay.table, goal) != _contents(goal.physical_to_logical.tolist(), goal):
        found.append("some GPU does not end with the experts that it should have")
    return found


def _contents(table: list[list[int]], placement: Placement) -> list[Counter[int]]:
    """The experts on each GPU of each layer, in any order."""
    size = placement.slots_per_gpu
    starts = range(0, placement.slots, size)
    return [Counter(row[first : first + size]) for row in table for first in starts]


class _Replay:
    """``table`` [layers][slots] what serves; ``arriving`` copies that do not serve yet."""

    def __init__(self, before: Placement, expert_bytes: int, budget: Budget) -> None:
        self.before, self.expert_bytes, self.budget = before, expert_bytes, budget
        self.table: list[list[int]] = before.physical_to_logical.tolist()
        self.arriving: list[Transfer] = []
        self.in_scratch: set[Transfer] = set()

    def play(self, round: Round) -> list[str]:
        for layer, slot in round.drops:
            self.table[layer][slot] = EMPTY
        found = self._lost({layer for layer, _ in round.drops})
        for copy in round.copies:
            found += self._wrong_ends(copy)
            self.arriving.append(copy)
            if self.table[copy.layer][copy.slot] != EMPTY:
                self.in_scratch.add(copy)
        found += self._over_budget(round)
        for copy in round.commits:
            if copy not in self.arriving:
                found.append(f"{copy} is committed but not there")
                continue
            self.arriving.remove(copy)
            self.in_scratch.discard(copy)
            self.table[copy.layer][copy.slot] = copy.expert
        return found + self._lost({copy.layer for copy in round.commits})

    def _lost(self, layers: set[int]) -> list[str]:
        return [
            f"layer {layer} loses expert {expert}"
            for layer in sorted(layers)
            for expert in sorted(set(range(self.before.experts)) - set(self.table[layer]))
        ]

    def _wrong_ends(self, copy: Transfer) -> list[str]:
        found = []
        size = self.before.slots_per_gpu
        held = self.table[copy.layer][copy.source * size : (copy.source + 1) * size]
        if copy.expert not in held:
            found.append(f"{copy} comes from a GPU without this expert")
        if copy.slot // size != copy.gpu:
            found.append(f"{copy} goes to a slot of another GPU")
        if any((one.layer, one.slot) == (copy.layer, copy.slot) for one in self.arriving):
            found.append(f"{copy} goes where another copy is going")
        return found

    def _over_budget(self, round: Round) -> list[str]:
        node = self.before.node_of_gpu.tolist()
        used: Counter[str] = Counter()
        for copy in round.copies:
            if copy.source == copy.gpu:
                continue
            far = node[copy.source] != node[copy.gpu]
            link = "network" if far else "local"
            used[f"rank {copy.source} out, {link}"] += self.expert_bytes
            used[f"rank {copy.gpu} in, {link}"] += self.expert_bytes
            if far:
                used[f"node {node[copy.source]} out"] += self.expert_bytes
                used[f"node {node[copy.gpu]} in"] += self.expert_bytes
        limits = {"rank": self.budget.rank_bytes, "node": self.budget.node_bytes}
        found = [
            f"{name}: {count} bytes in flight, {limit} allowed"
            for name, count in used.items()
            if (limit := limits[name.split()[0]]) is not None and count > limit
        ]
        scratch = Counter(copy.gpu for copy in self.in_scratch)
        return found + [
            f"GPU {gpu} holds {count} experts beside its slots, {self.budget.scratch_slots} allowed"
            for gpu, count in scratch.items()
            if count > self.budget.scratch_slots
        ]
