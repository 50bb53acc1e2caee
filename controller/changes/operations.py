"""Operations: one change to a pool, engine after engine.

The record says what is about to be asked of which engine, and is written before it is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, TypeAlias

from pydantic import TypeAdapter

from controller.ledger.records import Form, Record
from controller.migration.machine import FINAL, TRANSITIONS, Event, State


class Phase(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    RETURNING = "returning"
    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled back"
    HALTED = "halted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Expected:
    """What a change of width costs an engine, as ``placer.resize.price`` finds: slots of all layers
    by what becomes of them, bytes, and seconds by step."""

    kept: int
    remapped: int
    copied: int
    loaded: int
    p2p_bytes: int
    network_bytes: int
    disk_bytes: int
    peak_bytes: int
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Apply:
    """Bring engines to a plan's placement. goal: its digest"""

    kind: ClassVar[str] = "apply"
    resizes: ClassVar[bool] = False
    plan_id: str
    goal: str


@dataclass(frozen=True, slots=True)
class Rollback:
    """Bring engines back to where they stood before the change that carried ``plan_id`` out, or
    gave them another width. ranks: that they have since, 0 if as many as before"""

    kind: ClassVar[str] = "rollback"
    plan_id: str
    goal: str
    ranks: int = 0

    @property
    def resizes(self) -> bool:
        return self.ranks > 0


@dataclass(frozen=True, slots=True)
class Scale:
    """Give engines another width.

    ranks: that they should have, 0 if 0.1.0 wrote it; before: that they have
    goal:  digest of the placement there; empty if it is refused
    price: that was expected, for each engine
    """

    kind: ClassVar[str] = "scale"
    resizes: ClassVar[bool] = True
    plan_id: ClassVar[str] = ""
    ranks: int = 0
    before: int = 0
    goal: str = ""
    price: Expected | None = None


Change: TypeAlias = Apply | Rollback | Scale


@dataclass(frozen=True, slots=True)
class Operation:
    """The envelope of a change: what all kinds have.

    key:    the caller's; the same again is the same operation
    other_keys: of those who asked for the same before, while it waited for its turn
    back_key: of whoever told it to go back
    engines: how many it changes, one after another; targets.py knows where they stood
    at, engine: whose turn it is: its number, and its name
    state, round, rounds: the machine's state, and its round
    epoch:  of the attempt, unix milliseconds: grows even if a ledger is lost
    tries:  of going back
    why:    what made it go back, or ended it
    width:  ranks of these engines, 0 if 0.1.0 wrote it
    left_out: those that had another width when it was their turn
    seconds, bytes: so far, by state
    moved:  slots that were given another expert, on the way back too
    rollback_targets: as targets.py tells, of operations that were begun when each step wrote them
    """

    id: str
    key: str
    pool: str
    change: Change
    expert_bytes: int
    begun_s: float
    engines: int = 0
    engine: str = ""
    phase: Phase = Phase.RUNNING
    at: int = 0
    state: State = State.STAGING
    round: int = 0
    rounds: int = 0
    epoch: int = 0
    tries: int = 0
    why: str = ""
    back_key: str = ""
    moved: int = 0
    copied_bytes: int = 0
    longest_pause_s: float = 0.0
    width: int = 0
    left_out: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    bytes: Mapping[str, int] = field(default_factory=dict)
    other_keys: tuple[str, ...] = ()
    rollback_targets: Mapping[str, str] = field(default_factory=dict)

    @property
    def scale(self) -> Scale | None:
        """The change of width, if it is one."""
        return self.change if isinstance(self.change, Scale) else None

    @property
    def keys(self) -> tuple[str, ...]:
        """By which it is known."""
        return (self.key, self.back_key, *self.other_keys)

    @property
    def kind(self) -> str:
        return self.change.kind

    @property
    def plan_id(self) -> str:
        """Empty if it is of none."""
        return self.change.plan_id

    @property
    def goal(self) -> str:
        """Digest of the placement that all engines should have; empty if it is about none."""
        return self.change.goal

    @property
    def outcome(self) -> str:
        """How it ended, or why, for the plans that hear of it."""
        left = f"; left out: {', '.join(self.left_out)}, resized meanwhile" if self.left_out else ""
        return (self.why or f"{self.id} {self.phase}") + left

    @property
    def is_final(self) -> bool:
        return self.phase not in (Phase.WAITING, Phase.RUNNING, Phase.RETURNING)

    def target(self, targets: Mapping[str, str]) -> str:
        """Digest of the placement that the engine should get now. targets: as targets.py tells"""
        return targets[self.engine] if self.phase is Phase.RETURNING else self.goal

    @property
    def has_no_round_left(self) -> bool:
        if self.state is State.AGREEING:
            return self.rounds == 0
        return self.state is State.COMMITTING and self.round + 1 == self.rounds

    @property
    def progress(self) -> str:
        if self.is_final or self.phase is Phase.WAITING:
            return self.phase
        rounds = f", round {self.round + 1} of {self.rounds}" if self.rounds else ""
        back = ", going back" if self.phase is Phase.RETURNING else ""
        return f"{self.engine}: {self.state}{rounds}{back}"

    @property
    def course(self) -> str:
        """Which plan it carries out, and how far it is."""
        return f"{self.plan_id} on {self.progress}" if not self.is_final else self.plan_id

    def without(self, engine: str) -> "Operation":
        """An engine that stays where it is."""
        return replace(self, left_out=tuple(dict.fromkeys([*self.left_out, engine])))

    def spent(self, seconds: float, copied_bytes: int) -> "Operation":
        """In its state."""
        times = {**self.seconds, self.state: self.seconds.get(self.state, 0.0) + seconds}
        sizes = {**self.bytes, self.state: self.bytes.get(self.state, 0) + copied_bytes}
        return replace(
            self, seconds=times, bytes={state: size for state, size in sizes.items() if size}
        )

    def after(self, event: Event, now_s: float, engines: Sequence[str]) -> "Operation":
        """What follows from an event: the machine's next state, or the next engine's first.
        engines: all that it changes, in their order"""
        state = TRANSITIONS[self.state, event]
        phase, at_round, tries = self.phase, self.round, self.tries
        if event in (Event.REFUSED, Event.LOST, Event.LATE, Event.ABORT):
            tries += phase is Phase.RETURNING or self.state is State.DISCARDING
            if self.state is not State.DISCARDING or event is Event.ABORT:
                phase = Phase.RETURNING
        if state is State.DROPPING:
            at_round = 0 if self.state is State.AGREEING else at_round + 1
        moved = replace(self, state=state, phase=phase, round=at_round, tries=tries)
        if state is State.HALTED:
            return replace(moved, phase=Phase.HALTED)
        if state is State.SETTLED:
            return moved._settled(now_s, engines)
        return moved._begun(now_s) if state is State.STAGING else moved

    def _settled(self, now_s: float, engines: Sequence[str]) -> "Operation":
        going_back = self.phase is Phase.RETURNING
        at = self.at - 1 if going_back else self.at + 1
        if at < 0:
            return replace(self, phase=Phase.ROLLED_BACK)
        if at == len(engines):
            return replace(self, phase=Phase.SUCCEEDED)
        return replace(self, at=at, engine=engines[at], state=State.STAGING)._begun(now_s)

    def _begun(self, now_s: float) -> "Operation":
        epoch = max(self.epoch + 1, int(now_s * 1000))
        return replace(self, epoch=epoch, round=0, rounds=0)


NOT_BEGUN = (Phase.WAITING, Phase.REFUSED)
_OPERATION = TypeAdapter(Operation)
_CHANGES: dict[str, TypeAdapter[Change]] = {
    one.kind: TypeAdapter(one) for one in (Apply, Rollback, Scale)
}
# What 0.1.0 wrote.
_FORMERLY = {"homes": "rollback_targets", "turn": "round", "turns": "rounds"}


def _read(row: dict[str, Any]) -> Operation:
    """The change stands among the envelope's fields, under its kind."""
    told = {_FORMERLY.get(name, name): value for name, value in row.items()}
    if (change := _CHANGES.get(told["kind"])) is None:
        raise ValueError(f"is of kind {told['kind']!r:.40}, which this version does not know")
    if "engine" not in told:
        engines = list(told["rollback_targets"])
        told |= {
            "engines": len(engines),
            "engine": dict(enumerate(engines)).get(told["at"], ""),
        }
    return _OPERATION.validate_python({**told, "change": change.validate_python(told)})


def _write(operation: Operation) -> dict[str, Any]:
    row = _OPERATION.dump_python(operation)  # asdict takes ten times as long, at every step
    change = {"kind": operation.kind, "plan_id": operation.plan_id, "goal": operation.goal}
    return {**change, **row.pop("change"), **row}


def _check(record: Record[Operation]) -> None:
    found = record.value
    if not found.goal and found.phase not in NOT_BEGUN:
        raise ValueError(f"is {found.phase}, and leads nowhere")
    if record.final != found.is_final or (found.state in FINAL and not record.final):
        raise ValueError(f"is {found.phase} and {found.state}, but open or ended otherwise")
    counts = (found.width, found.expert_bytes, found.round, found.rounds, found.epoch, found.tries)
    if not all(0 <= one < 2**63 for one in (*counts, found.moved, found.copied_bytes)):
        raise ValueError("counts what cannot be counted")
    if found.phase not in NOT_BEGUN and not 0 <= found.at < found.engines:
        raise ValueError(f"is at engine {found.at} of {found.engines}")


FORM = Form(_read, _write, _check)
