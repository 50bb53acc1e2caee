"""Engines and a planner without processes or weights: for simulations, and to try things out."""

from collections.abc import Sequence

from controller.engines.planning import answer, resized
from controller.migration.commands import (
    Command,
    Commit,
    Copy,
    Discard,
    Done,
    Drop,
    Lost,
    Outcome,
    Refused,
    Stage,
    Switch,
    Verify,
)
from controller.ports import EngineLostError, Relocation, Unseen
from controller.samples import Sample
from placer.checks import violations
from placer.clock import Clock
from placer.objective import Objective
from placer.placement import EMPTY, Placement
from placer.plan import Hold, Infeasible, Plan
from placer.problem import Problem
from placer.resize.price import Price
from placer.schedule import MigrationSchedule, Transfer, schedule


class MemoryPlanner:
    """Plans where it is asked. solve_s: that its clock passes meanwhile, however long it takes"""

    def __init__(self, clock: Clock, solve_s: float = 0.0) -> None:
        self.clock, self.solve_s = clock, solve_s

    async def answer(
        self, problem: Problem, optimizer: str, unseen: Unseen | None = None
    ) -> Plan | Hold | Infeasible:
        found = answer(problem, optimizer, unseen)
        await self.clock.sleep(self.solve_s)
        return found

    async def resized(
        self, problem: Problem, current: Placement, optimizer: str
    ) -> Price | Infeasible:
        found = resized(problem, current, optimizer)
        await self.clock.sleep(self.solve_s)
        return found

    async def scheduled(self, relocation: Relocation) -> MigrationSchedule:
        return schedule(*relocation)


class MemoryEngine:
    """A map that changes as an engine's would. ``is_gone``: nothing is answered any more."""

    def __init__(self, placement: Placement, expert_bytes: int = 1) -> None:
        self.placement, self.expert_bytes, self.is_gone = placement, expert_bytes, False
        self._epoch = 0
        self._after: Placement | None = None  # of another width
        self._arrived: dict[tuple[int, int], int] = {}  # layer and slot -> expert

    def carry_out(self, command: Command) -> Outcome:
        if self.is_gone:
            return Lost("the engine is gone")
        if not isinstance(command, Stage | Discard) and command.epoch != self._epoch:
            return Refused(f"epoch {command.epoch} is not staged: stage it first")
        match command:
            case Stage():
                return self._stage(command)
            case Drop(round=round):
                return self._serve([(layer, slot, EMPTY) for layer, slot in round.drops])
            case Copy(round=round):
                self._arrived |= {(one.layer, one.slot): one.expert for one in round.copies}
                far = [one for one in round.copies if one.source != one.gpu]
                return Done(copied_bytes=self.expert_bytes * len(far))
            case Commit(round=round):
                return self._commit(round.commits)
            case Switch():
                self.placement = self._after or self.placement
            case Verify(digest=digest):
                now = self.placement.digest
                return Done() if now == digest else Refused(f"it serves {now} and not {digest}")
            case Discard(epoch=epoch):
                if epoch >= self._epoch:
                    self._epoch, self._arrived, self._after = 0, {}, None
        return Done()

    def _stage(self, command: Stage) -> Outcome:
        if command.before.digest != self.placement.digest:
            return Refused(f"it serves {self.placement.digest}: plan from that map")
        if broken := violations(command.after, Objective(allow_duplicates=True)):
            return Refused(broken[0])
        if command.epoch != self._epoch:
            self._epoch, self._arrived = command.epoch, {}
            self._after = None
        if command.after.gpus != self.placement.gpus:
            self._after = command.after
        return Done()

    def _commit(self, commits: Sequence[Transfer]) -> Outcome:
        table, changes = self.placement.physical_to_logical, []
        for one in commits:
            place = one.layer, one.slot
            if place in self._arrived:
                changes.append((*place, self._arrived.pop(place)))
            elif table[place] != one.expert:  # nor committed before
                return Refused(f"{one} is not there: copy it first")
        return self._serve(changes)

    def _serve(self, changes: Sequence[tuple[int, int, int]]) -> Outcome:
        """Other experts in slots: layer, slot and expert of each."""
        if not changes:
            return Done()
        now = self.placement
        table = now.physical_to_logical.copy()
        for layer, slot, expert in changes:
            table[layer, slot] = expert
        after = Placement(table, now.experts, now.gpus, now.nodes)
        if lost := after.lost:
            return Refused("layer {} would lose expert {}: copy it first".format(*lost[0]))
        self.placement = after
        return Done()


class MemoryEngines:
    """Engines by pool and name. samples: what they say of their load"""

    def __init__(self, engines: dict[tuple[str, str], MemoryEngine]) -> None:
        self.engines = engines
        self.samples: dict[tuple[str, str], Sample] = {}

    def moves_itself(self, pool: str, engine: str) -> bool:
        return False

    async def stands(self, pool: str, engine: str) -> Placement:
        found = self.engines.get((pool, engine))
        if found is None or found.is_gone:
            raise EngineLostError(f"{engine} of {pool} is gone: start it again")
        return found.placement

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        found = self.engines.get((pool, engine))
        return found.carry_out(command) if found else Lost(f"{engine} of {pool} is not there")

    async def sample(self, pool: str, engine: str) -> Sample:
        if (pool, engine) not in self.samples:
            raise EngineLostError(f"{engine} of {pool} says nothing of its load")
        return self.samples[pool, engine]
