"""What must hold at every step of a story: of what is written, asked of engines, and served."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from controller.changes.operations import Apply, Operation, Phase
from controller.config import Config
from controller.engines.in_memory import MemoryEngine
from controller.fleet.observed import same_experts
from controller.forms import FORMS
from controller.ledger.ledger import Ledger, LedgerFull, Record
from controller.migration.commands import (
    Command,
    Commit,
    Copy,
    Discard,
    Drop,
    Outcome,
    Refused,
    Stage,
    Switch,
    Transfer,
)
from placer.placement import Placement

MOVES = Drop | Copy | Commit | Transfer | Switch


@dataclass(frozen=True, slots=True)
class Wrong:
    """A rule that does not hold, and how."""

    rule: str
    told: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.told}"


@dataclass(eq=False)
class Watch:
    """Sees all that is written, asked and done.

    wrong:    the first that was found; the story ends there
    approved: plans that an operator approved; keys: of what operators asked for
    open, waiting, ended: operations
    """

    config: Config
    wrong: Wrong | None = None
    approved: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    open: dict[str, Operation] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    ended: dict[str, Operation] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _of_key: dict[str, str] = field(default_factory=dict)
    _of_plan: dict[str, str] = field(default_factory=dict)
    _epochs: dict[tuple[str, str], tuple[int, str, str]] = field(default_factory=dict)
    _goals: dict[str, str] = field(default_factory=dict)

    def check(self, holds: bool, rule: str, told: str) -> None:
        if not holds and self.wrong is None:
            self.wrong = Wrong(rule, told)

    def written(self, record: Record[Any]) -> None:
        if record.kind == "plan":
            digest = self._goals.setdefault(record.id, record.value.digest)
            self.check(record.value.digest == digest, "a plan stays the same", record.id)
        if record.kind == "operation":
            self._written(record)

    def _written(self, record: Record[Operation]) -> None:
        id, now = record.id, record.value
        self.check(id not in self.ended, "an operation ends once", f"{id} goes on")
        if now.key:
            first = self._of_key.setdefault(now.key, now.id)
            told = f"{now.key} began {first} and {now.id}"
            self.check(first == now.id, "one key is one operation", told)
        self.waiting.discard(id)
        if now.phase is Phase.WAITING:
            self.waiting.add(id)
            return
        if id not in self._known:
            self._known.add(id)
            self._begun(now)
        elif (before := self.open.get(id)) is not None:
            self.check(now.epoch >= before.epoch, "epochs grow", f"{id} at {now.epoch}")
        if not record.final:
            self.open[id] = now
            others = [one for one in self.open if one != id]
            self.check(not others, "one operation runs at a time", f"{id} beside {others}")
            return
        self.open.pop(id, None)
        self.ended[id] = now
        if now.phase is Phase.HALTED:
            remedy = f"placer rollback {now.pool}"
            self.check(remedy in now.why, "halted says what to do", f"{id}: {now.why}")

    def _begun(self, now: Operation) -> None:
        if now.phase is Phase.REFUSED:
            return
        if isinstance(now.change, Apply):
            first = self._of_plan.setdefault(now.plan_id, now.id)
            told = f"{now.plan_id} by {first} and {now.id}"
            self.check(first == now.id, "a plan is applied once", told)
            goal = self._goals.get(now.plan_id)
            self.check(now.goal == goal, "a plan stays the same", f"{now.id} of {now.plan_id}")
        if self.config.of(now.pool).mode == "advisory":
            asked = now.plan_id in self.approved or now.key in self.keys
            self.check(asked, "advisory waits for approval", f"{now.id} was begun by itself")

    def issued(self, pool: str, engine: str, command: Command, target: Placement | None) -> None:
        """A controller asks. target: where the operation that is written down leads"""
        name = type(command).__name__
        self.asked.append(f"{pool}/{engine} {name} {command.epoch}")
        now = next((one for one in self.open.values() if one.pool == pool), None)
        is_written = now is not None and (now.engine, now.epoch) == (engine, command.epoch)
        told = f"{name} to {engine} of {pool}"
        self.check(is_written, "what is asked was written down", told)
        if isinstance(command, MOVES):
            frozen = self.config.of(pool).bytes_per_minute == 0
            self.check(not frozen, "nothing moves in a frozen pool", told)
        if isinstance(command, Stage):
            self._staged(pool, engine, command)
            fits = target is None or same_experts(command.after, target)
            stays = command.after.digest == command.before.digest
            self.check(fits or stays, "engines go where was approved", told)

    def _staged(self, pool: str, engine: str, command: Stage) -> None:
        now = command.epoch, command.before.digest, command.after.digest
        last = self._epochs.setdefault((pool, engine), now)
        fine = now[0] > last[0] or now == last
        told = f"{engine} of {pool} at epoch {now[0]} after {last[0]}"
        self.check(fine, "an epoch is begun once", told)
        self._epochs[pool, engine] = now

    def done(
        self, pool: str, engine: MemoryEngine, before: Placement, command: Command, outcome: Outcome
    ) -> None:
        """An engine has carried it out, or would not."""
        name, after = f"{type(command).__name__} in {pool}", engine.placement
        self.serves(pool, engine)
        if isinstance(outcome, Refused):
            # Engines refuse what loses an expert; the controller must not rely on it.
            late = "is not staged" in outcome.reason
            fine = late or not isinstance(command, Drop | Copy | Commit | Switch)
            self.check(fine, "engines need not refuse", f"{name}: {outcome.reason}")
        elif isinstance(command, Copy):
            copies = command.round.copies
            lacks = [o for o in copies if not before.copies[o.layer, o.expert, o.source]]
            self.check(not lacks, "copies come from who has them", f"{name}: {lacks[:1]}")
        if after is not before:
            fine = any(one.pool == pool for one in self.open.values())
            self.check(fine, "what moves was written down", name)
            self.check(not isinstance(command, Discard), "a map stays", name)

    def serves(self, pool: str, engine: MemoryEngine) -> None:
        lost = engine.placement.lost
        self.check(not lost, "every expert is served", f"{pool} lacks (layer, expert) {lost}")

    def is_whole(self, ledger: Ledger) -> None:
        """It reads back, every version of everything."""
        versions: dict[tuple[str, str], list[int]] = {}
        for record in ledger.history():
            versions.setdefault((record.kind, record.id), []).append(record.version)
        for kind in ("snapshot", "ids"):
            ledger.newest(kind)
        left_out = [f"{one.kind} {one.id} {one.why}" for one in ledger.left_out()]
        self.check(not left_out, "the ledger reads back", ", ".join(left_out))
        for (kind, id), found in versions.items():
            whole = found == list(range(len(found), 0, -1))
            self.check(whole, "the ledger reads back", f"{kind} {id} has versions {found}")


class Disk(Ledger):
    """A ledger in memory; there may be no room for it."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(None, FORMS)
        self.watch, self.is_full = watch, False

    def put_all(self, records: Iterable[Record[Any]]) -> tuple[Record[Any], ...]:
        self._look()
        written = super().put_all(records)
        for record in written:
            self.watch.written(record)
        return written

    def prune(self, kind: str, keep: int, since_s: float, needed: Collection[str] = ()) -> int:
        self._look()
        return super().prune(kind, keep, since_s, needed)

    def _look(self) -> None:
        if self.is_full:
            raise LedgerFull("the disk is full: free some space; writing then goes on by itself")
