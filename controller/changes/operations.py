"""Operations: one change to a pool, engine after engine, each step written down before it is taken.

The record says what is about to be asked of which engine. A controller that was killed finds it
open, has the engine forget what was half done, and goes on from what stands. If an engine fails, it
and those that were changed before it go back.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum

from pydantic import TypeAdapter

from controller.config import Config
from controller.fleet.workers import FleetError
from controller.ledger.ledger import LedgerError, Record, Unreadable
from controller.ledger.watched import WatchedLedger
from controller.migration.commands import Command, Copy, Discard, Done, Lost, Outcome, Refused
from controller.migration.machine import FINAL, TRANSITIONS, Attempt, Event, State
from controller.ports import EngineLostError, Engines
from placer.errors import PlacerError
from placer.schedule import Budget, schedule

DEADLINE_S = 60.0  # of a command
ITSELF_S = 300.0  # an engine that moves by itself does at its next rebalancing step
TRIES = 12  # of going back
RETRY_S = 5.0


class Phase(StrEnum):
    RUNNING = "running"
    RETURNING = "returning"
    SUCCEEDED = "succeeded"
    ROLLED_BACK = "rolled back"
    HALTED = "halted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Operation:
    """
    key:    the caller's; the same again is the same operation
    back_key: of whoever told it to go back
    goal:   digest of the placement that all engines should have
    rollback_targets: each engine's before, to go back to; engines are changed in this order
    at, state, round, rounds: the engine, the machine's state, and its round
    epoch:  of the attempt, unix milliseconds: grows even if a ledger is lost
    tries:  of going back
    why:    what made it go back, or ended it
    moved:  slots that were given another expert, on the way back too
    """

    id: str
    key: str
    pool: str
    kind: str
    plan_id: str
    goal: str
    expert_bytes: int
    begun_s: float
    rollback_targets: Mapping[str, str] = field(default_factory=dict)
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

    @classmethod
    def of(cls, record: Record) -> "Operation":
        """Raises ValueError for a record that is none of an operation."""
        body = {_FORMERLY.get(name, name): value for name, value in record.body.items()}
        found = _OPERATION.validate_python(body)
        if record.final != found.is_final or (found.state in FINAL and not record.final):
            raise ValueError(f"is {found.phase} and {found.state}, but open or ended otherwise")
        counts = (found.expert_bytes, found.round, found.rounds, found.epoch, found.tries)
        if not all(0 <= one < 2**63 for one in (*counts, found.moved, found.copied_bytes)):
            raise ValueError("counts what cannot be counted")
        if found.phase is not Phase.REFUSED and not 0 <= found.at < len(found.rollback_targets):
            raise ValueError(f"is at engine {found.at} of {len(found.rollback_targets)}")
        return found

    @property
    def is_final(self) -> bool:
        return self.phase not in (Phase.RUNNING, Phase.RETURNING)

    @property
    def engine(self) -> str:
        return list(self.rollback_targets)[self.at]

    @property
    def target(self) -> str:
        """Digest of the placement that the engine should get now."""
        return self.rollback_targets[self.engine] if self.phase is Phase.RETURNING else self.goal

    @property
    def has_no_round_left(self) -> bool:
        if self.state is State.AGREEING:
            return self.rounds == 0
        return self.state is State.COMMITTING and self.round + 1 == self.rounds

    @property
    def progress(self) -> str:
        if self.is_final:
            return self.phase
        rounds = f", round {self.round + 1} of {self.rounds}" if self.rounds else ""
        back = ", going back" if self.phase is Phase.RETURNING else ""
        return f"{self.engine}: {self.state}{rounds}{back}"

    @property
    def course(self) -> str:
        """Which plan it carries out, and how far it is."""
        return f"{self.plan_id} on {self.progress}" if not self.is_final else self.plan_id

    def after(self, event: Event, now_s: float) -> "Operation":
        """What follows from an event: the machine's next state, or the next engine's first."""
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
            return moved._settled(now_s)
        return moved._begun(now_s) if state is State.STAGING else moved

    def _settled(self, now_s: float) -> "Operation":
        going_back = self.phase is Phase.RETURNING
        at = self.at - 1 if going_back else self.at + 1
        if at < 0:
            return replace(self, phase=Phase.ROLLED_BACK)
        if at == len(self.rollback_targets):
            return replace(self, phase=Phase.SUCCEEDED)
        return replace(self, at=at, state=State.STAGING)._begun(now_s)

    def _begun(self, now_s: float) -> "Operation":
        epoch = max(self.epoch + 1, int(now_s * 1000))
        return replace(self, epoch=epoch, round=0, rounds=0)


_OPERATION = TypeAdapter(Operation)
# What 0.1.0 wrote.
_FORMERLY = {"homes": "rollback_targets", "turn": "round", "turns": "rounds"}


class Operations:
    """Carries one operation out at a time; who begins which is the loop's to say."""

    def __init__(self, ledger: WatchedLedger, engines: Engines, config: Config) -> None:
        self.ledger, self.engines, self.config = ledger, engines, config
        self._abort = self._abort_key = ""

    def abort(self, record: Record, reason: str, key: str = "") -> None:
        """Have the operation that runs go back at its next step, also if this controller is killed
        before that."""
        if not self.ledger.records.version("abort", record.id):
            self.ledger.write("abort", record.id, reason, {"key": key}, pool=record.pool)
        self._abort, self._abort_key = reason, key

    async def run(self, record: Record, is_restart: bool = False) -> Record:
        """To its end. Raises LedgerError if a step cannot be written down: nothing moves then,
        until it is run again."""
        operation, attempt = Operation.of(record), None
        event = Event.RESTART if is_restart else None
        self._hear_abort(operation.id)
        while True:
            if event is not None:
                operation = operation.after(event, self.ledger.clock.now_s())
                if operation.phase in (Phase.RETURNING, Phase.ROLLED_BACK):
                    operation = replace(operation, back_key=self._abort_key or operation.back_key)
                if operation.state in (State.STAGING, State.DISCARDING):
                    attempt = None
                reason, body = operation.why or record.reason, asdict(operation)
                record = self.ledger.follow(record, reason, body=body, final=operation.is_final)
            if operation.is_final:
                self._abort = self._abort_key = ""
                return record
            try:
                if attempt is None and operation.state is not State.DISCARDING:
                    attempt = await self._attempt(operation)
                    operation = replace(operation, rounds=len(attempt.rounds))
                outcome: Outcome | None = await self._ask(operation, attempt)
            except Unreadable as error:
                outcome = Refused(str(error))
            except LedgerError:
                raise
            except EngineLostError as error:
                outcome = Lost(str(error))
            except PlacerError as error:
                outcome = Refused(str(error))
            event, operation = await self._judge(operation, attempt, outcome)

    def last_change(self, pool: str) -> Record | None:
        """The newest operation that left the pool elsewhere."""
        for record in self.ledger.records.newest("operation", pool=pool, final=True):
            if record.body["phase"] in (Phase.SUCCEEDED, Phase.HALTED):
                return record
        return None

    def to_undo(self, pool: str) -> Operation:
        """The last change. Raises FleetError if there is none, Unreadable if it cannot be read."""
        last = self.last_change(pool)
        number = 0 if last is None else last.number
        for one in self.ledger.records.left_out():
            if (one.kind, one.pool) == ("operation", pool) and one.number > number:
                raise Unreadable(
                    f"{one.id} cannot be read, so that it is not known where {pool} stood before: "
                    "propose a plan instead"
                )
        if last is None:
            raise FleetError(f"{pool} was never changed: there is nothing to roll back to")
        return Operation.of(last)

    def of_plan(self, plan: Record) -> Record | None:
        """That applied it; None if it cannot be read."""
        for record in self.ledger.records.newest("operation", pool=plan.pool):
            if (record.body["kind"], record.body["plan_id"]) == ("apply", plan.id):
                return record
        return None

    def _hear_abort(self, id: str) -> None:
        """What was written down before the controller was killed."""
        try:
            if (told := self.ledger.records.get("abort", id)) is not None:
                self._abort, self._abort_key = told.reason, told.body["key"]
        except Unreadable as error:  # that there is one says enough
            self._abort = f"an operator wanted it back: {error}"

    async def _attempt(self, operation: Operation) -> Attempt:
        """From what stands to the target, in rounds that keep to the pool's budget."""
        pool, engine = operation.pool, operation.engine
        before = await self.engines.stands(pool, engine)
        goal = self.ledger.placement(operation.target)
        if self.engines.moves_itself(pool, engine):
            return Attempt(operation.epoch, before, goal, ())
        policy = self.config.of(pool)
        size = operation.expert_bytes
        budget = Budget(max(policy.rank_bytes, size), scratch_slots=policy.scratch_slots)
        found = schedule(before, goal, size, policy.hardware(before.gpus), budget)
        if found.reason:
            raise PlacerError(found.reason)
        return Attempt(operation.epoch, before, found.after, found.rounds)

    async def _ask(self, operation: Operation, attempt: Attempt | None) -> Outcome | None:
        """Have the engine carry the state's command out; None if it does not answer in time."""
        if self._abort and operation.phase is Phase.RUNNING:
            return Refused(self._abort)
        command: Command = Discard(operation.epoch)
        if attempt is not None:
            command = attempt.command(operation.state, operation.round)
        itself = self.engines.moves_itself(operation.pool, operation.engine)
        deadline_s = ITSELF_S if itself else DEADLINE_S
        try:
            async with asyncio.timeout(deadline_s):
                outcome = await self.engines.carry_out(operation.pool, operation.engine, command)
        except TimeoutError:
            return None
        if isinstance(command, Copy) and isinstance(outcome, Done):
            await self._slow_down(operation.pool, outcome.copied_bytes)
        return outcome

    async def _judge(
        self, operation: Operation, attempt: Attempt | None, outcome: Outcome | None
    ) -> tuple[Event, Operation]:
        """The machine's event, and what there is to remember of it."""
        if isinstance(outcome, Done):
            pause_s = max(operation.longest_pause_s, outcome.pause_s)
            copied_bytes = operation.copied_bytes + outcome.copied_bytes
            operation = replace(operation, copied_bytes=copied_bytes, longest_pause_s=pause_s)
            if attempt is not None and operation.state is State.COMMITTING:
                moved = operation.moved + len(attempt.rounds[operation.round].commits)
                operation = replace(operation, moved=moved)
            if self._abort and operation.phase is Phase.RUNNING:
                return Event.ABORT, replace(operation, why=self._abort)
            if operation.has_no_round_left:
                return Event.LAST, operation
            tired = operation.state is State.DISCARDING and operation.tries >= TRIES
            return (Event.TIRED if tired else Event.DONE), operation
        reason = outcome.reason if outcome else "no answer in time"
        if not operation.why:
            operation = replace(operation, why=f"{operation.progress}: {reason}")
        if self._abort and operation.phase is Phase.RUNNING:
            return Event.ABORT, replace(operation, why=self._abort)
        discarding = operation.state is State.DISCARDING
        if discarding and operation.tries >= TRIES:
            return Event.TIRED, operation
        if discarding or operation.phase is Phase.RETURNING:
            await self.ledger.clock.sleep(RETRY_S)
        return {Refused: Event.REFUSED, Lost: Event.LOST}.get(type(outcome), Event.LATE), operation

    async def _slow_down(self, pool: str, copied_bytes: int) -> None:
        """Spread copies over the time that the budget gives them."""
        rate = self.config.of(pool).bytes_per_minute
        if rate:
            await self.ledger.clock.sleep(copied_bytes * 60 / rate)
