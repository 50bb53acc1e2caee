"""Carries operations out, each step written down before it is taken.

The record says what is about to be asked of which engine. A controller that was killed finds it
open, has the engine forget what was half done, and goes on from what stands. If an engine fails, it
and those that were changed before it go back.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.changes.operations import Operation, Phase
from controller.changes.targets import targets_of
from controller.config import Config
from controller.ledger.ledger import LedgerError, Record, Unreadable
from controller.ledger.records import form_of
from controller.ledger.watched import WatchedLedger
from controller.migration.commands import (
    Command,
    Copy,
    Discard,
    Done,
    Lost,
    Outcome,
    Refused,
    Transfer,
)
from controller.migration.machine import Attempt, Event, State
from controller.ports import EngineLostError, Engines, Planner, Relocation
from placer.errors import PlacerError
from placer.schedule import Budget, MigrationSchedule

DEADLINE_S = 60.0  # of a command
ITSELF_S = 300.0  # an engine that moves by itself does at its next rebalancing step
TRANSFER_S = 1800.0  # and starts processes for more ranks, which load the model
TRIES = 12  # of going back
RETRY_S = 5.0

log = logging.getLogger("placer.controller")


@dataclass(frozen=True, slots=True)
class Abort:
    """A wish that an operation goes back. key: of whoever wants it"""

    key: str


ABORT = form_of(Abort)


class Runner:
    """Carries one operation out at a time; who begins which is the loop's to say."""

    def __init__(
        self, ledger: WatchedLedger, engines: Engines, config: Config, planner: Planner
    ) -> None:
        self.ledger, self.engines, self.config, self.planner = ledger, engines, config, planner
        self._abort = self._abort_key = ""
        self._last: tuple[Relocation, MigrationSchedule] | None = None

    def abort(self, record: Record[Operation], reason: str, key: str = "") -> None:
        """Have the operation that runs go back at its next step, also if this controller is killed
        before that."""
        if not self.ledger.records.version("abort", record.id):
            self.ledger.write("abort", record.id, reason, Abort(key), pool=record.pool)
        self._abort, self._abort_key = reason, key

    async def run(self, record: Record[Operation], is_restart: bool = False) -> Record[Operation]:
        """To its end. Raises LedgerError if a step cannot be written down: nothing moves then,
        until it is run again."""
        try:
            targets = targets_of(self.ledger.records, record)
        except Unreadable as error:  # an engine forgets what was half done at its next attempt
            why = f"{error}; {record.pool} stands at a valid map in between: propose a plan"
            ended = replace(record.value, state=State.HALTED, phase=Phase.HALTED, why=why)
            return self.ledger.follow(record, why, value=ended, final=True)
        return await self._run(record, targets, is_restart)

    async def _run(
        self, record: Record[Operation], targets: Mapping[str, str], is_restart: bool
    ) -> Record[Operation]:
        operation, attempt, engines = record.value, None, list(targets)
        event = Event.RESTART if is_restart else None
        self._hear_abort(operation.id)
        while True:
            if event is not None:
                operation = operation.after(event, self.ledger.clock.now(), engines)
                if operation.phase in (Phase.RETURNING, Phase.ROLLED_BACK):
                    operation = replace(operation, back_key=self._abort_key or operation.back_key)
                if operation.state in (State.STAGING, State.DISCARDING):
                    attempt = None
                reason, is_final = operation.why or record.reason, operation.is_final
                record = self.ledger.follow(record, reason, value=operation, final=is_final)
            if operation.is_final:
                self._abort = self._abort_key = ""
                return record
            try:
                if attempt is None and operation.state is not State.DISCARDING:
                    attempt = await self._attempt(operation, targets)
                    operation = replace(operation, rounds=len(attempt.rounds))
                    other = not operation.change.resizes and attempt.after.gpus != operation.width
                    if other and operation.width:
                        operation = operation.without(operation.engine)
                begun_s = self.ledger.clock.monotonic()
                outcome: Outcome | None = await self._ask(operation, attempt)
                took_s = self.ledger.clock.monotonic() - begun_s
                copied = outcome.copied_bytes if isinstance(outcome, Done) else 0
                operation = operation.spent(took_s, copied)
            except Unreadable as error:
                outcome = Refused(str(error))
            except LedgerError:
                raise
            except EngineLostError as error:
                outcome = Lost(str(error))
            except PlacerError as error:
                outcome = Refused(str(error))
            event, operation = await self._judge(operation, attempt, outcome)

    def _hear_abort(self, id: str) -> None:
        """What was written down before the controller was killed."""
        try:
            if (told := self.ledger.records.get("abort", id)) is not None:
                self._abort, self._abort_key = told.reason, told.value.key
        except Unreadable as error:  # that there is one says enough
            self._abort = f"an operator wanted it back: {error}"

    async def _attempt(self, operation: Operation, targets: Mapping[str, str]) -> Attempt:
        """From what stands to where the engine should, in rounds that keep to the pool's budget."""
        pool, engine = operation.pool, operation.engine
        before = await self.engines.stands(pool, engine)
        goal = self.ledger.placement(operation.target(targets))
        if goal.gpus != before.gpus and not operation.change.resizes:
            goal = before  # it was resized: what is meant is another engine
        if goal.gpus != before.gpus or self.engines.moves_itself(pool, engine):
            return Attempt(operation.epoch, before, goal, ())
        policy = self.config.of(pool)
        size = operation.expert_bytes
        budget = Budget(max(policy.rank_bytes, size), scratch_slots=policy.scratch_slots)
        hardware = policy.hardware(before.gpus)
        way = Relocation(before, goal, size, hardware, budget)
        # GPUs of a pool's engines mostly hold the same: in other slots where an engine began anew.
        if self._last is None or not _is_like(self._last[0], way):
            self._last = way, await self._scheduled(way)
        known, found = self._last
        if found.reason:
            raise PlacerError(found.reason)
        found = found.renamed(known.before, before)
        return Attempt(operation.epoch, before, found.after, found.rounds)

    async def _scheduled(self, relocation: Relocation) -> MigrationSchedule:
        """Raises PlacerError for a bug, too: trying again would meet it again, for ever."""
        try:
            return await self.planner.scheduled(relocation)
        except PlacerError:
            raise
        except Exception as error:
            way = f"from {relocation.before.digest} to {relocation.after.digest}"
            log.exception("placer: no rounds %s: please report it with both maps", way)
            raise PlacerError(f"no rounds were found {way}: a bug, {error!r}") from error

    async def _ask(self, operation: Operation, attempt: Attempt | None) -> Outcome | None:
        """Have the engine carry the state's command out; None if it does not answer in time."""
        if self._abort and operation.phase is Phase.RUNNING:
            return Refused(self._abort)
        command: Command = Discard(operation.epoch)
        if attempt is not None:
            command = attempt.command(operation.state, operation.round)
        itself = self.engines.moves_itself(operation.pool, operation.engine)
        deadline_s = ITSELF_S if itself else DEADLINE_S
        if itself and isinstance(command, Transfer):
            deadline_s = TRANSFER_S
        try:
            async with self.ledger.clock.timeout(deadline_s):
                outcome = await self.engines.carry_out(operation.pool, operation.engine, command)
        except TimeoutError:
            return None
        if isinstance(command, Copy | Transfer) and isinstance(outcome, Done):
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
            if operation.state is State.AGREEING and attempt is not None and attempt.resizes:
                return Event.RESIZES, operation
            if operation.has_no_round_left:
                return Event.LAST, operation
            frozen = self.config.of(operation.pool).frozen
            if operation.state is State.DISCARDING and (operation.tries >= TRIES or frozen):
                return Event.TIRED, _halted(operation, frozen)
            return Event.DONE, operation
        reason = outcome.reason if outcome else "no answer in time"
        if not operation.why:
            operation = replace(operation, why=f"{operation.progress}: {reason}")
        if self._abort and operation.phase is Phase.RUNNING:
            return Event.ABORT, replace(operation, why=self._abort)
        discarding = operation.state is State.DISCARDING
        if discarding and operation.tries >= TRIES:
            return Event.TIRED, _halted(operation)
        if discarding or operation.phase is Phase.RETURNING:
            await self.ledger.clock.sleep(RETRY_S)
        return {Refused: Event.REFUSED, Lost: Event.LOST}.get(type(outcome), Event.LATE), operation

    async def _slow_down(self, pool: str, copied_bytes: int) -> None:
        """Spread copies over the time that the budget gives them."""
        rate = self.config.of(pool).bytes_per_minute
        if rate:
            await self.ledger.clock.sleep(copied_bytes * 60 / rate)


def _is_like(one: Relocation, other: Relocation) -> bool:
    """Whether what goes from GPU to GPU is the same."""
    same = one.before.is_like(other.before) and one.after.is_like(other.after)
    return same and one[2:] == other[2:]


def _halted(operation: Operation, frozen: str = "") -> Operation:
    """With what to do about it."""
    pool, why = operation.pool, "; ".join(one for one in (operation.why, frozen) if one)
    well = "it may move again" if frozen else "its engines are well"
    return replace(
        operation,
        why=f"{why}: {pool} stands at a valid map in between; when {well}, placer rollback {pool}",
    )
