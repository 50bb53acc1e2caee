"""Plans and their lives, in the ledger: proposed, approved, applying, applied, and how they end."""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from controller.fleet.pools import Group, Pool
from controller.fleet.workers import NAME, FleetError, UnknownError
from controller.ledger.ledger import Conflict, Record
from controller.ledger.records import form_of
from controller.ledger.watched import WatchedLedger
from placer.files.plans import plan_text
from placer.plan import Plan


class PlanState(StrEnum):
    PROPOSED = "proposed"
    APPROVED = "approved"
    APPLYING = "applying"
    APPLIED = "applied"
    ROLLED_BACK = "rolled back"
    SUPERSEDED = "superseded"
    HALTED = "halted"
    REJECTED = "rejected"


WAITING = (PlanState.PROPOSED, PlanState.APPROVED)
OPEN = (*WAITING, PlanState.APPLYING, PlanState.APPLIED)
MOST_REASONS = 5  # of a plan's moves
LATELY = 20  # plans that are looked through for one that was rejected


@dataclass(frozen=True, slots=True)
class Kept:
    """A plan where it is in its life; its file is the first record's blob.

    before:  digest of the map that it starts from, "" for any
    gain:    0 if it is not known
    width:   ranks of the engines that it is for, and engines: their names then; 0 and none if 0.1.0
        wrote it
    epoch:   unix milliseconds of its proposal, each once; 0 if it was kept before that was said
    before_s, after_s: of the MoE layers in a step; None if they are not known
    reasons: why it was proposed, which rules it mends, and of some of its moves
    approver, key: who approved or rejected it, as they said, and their idempotency key
    """

    state: PlanState
    digest: str
    before: str
    moved: Annotated[int, Field(ge=0, lt=2**63, strict=True)]
    moved_bytes: Annotated[int, Field(ge=0, lt=2**63, strict=True)]
    gain: Annotated[float, Field(strict=True)]
    whole_gain: Annotated[float | None, Field(strict=True)] = None
    width: Annotated[int, Field(ge=0, strict=True)] = 0
    engines: tuple[str, ...] = ()
    epoch: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    before_s: Annotated[float | None, Field(strict=True)] = None
    after_s: Annotated[float | None, Field(strict=True)] = None
    reasons: tuple[str, ...] = ()
    approver: str = ""
    key: str = ""

    def is_for(self, width: int) -> bool:
        """Whether engines of this width may be meant."""
        return self.width in (0, width)

    def left_out(self, pool: Pool) -> str:
        """Which of its engines have another width now, for whoever reads a reason; empty if none
        has."""
        now = {
            name: group.ranks
            for group in pool.groups.values()
            for name in group.engines
            if group.ranks != self.width
        }
        told = [f"{name} has {now[name]} ranks now" for name in self.engines if name in now]
        return f"; left out: {', '.join(told)}" if told else ""


def _check(record: Record[Kept]) -> None:
    state = record.value.state
    if record.final != (state not in OPEN):
        raise ValueError(f"is {state}, but says otherwise where it should be open or ended")


FORM = form_of(Kept, _check)


class Plans:
    """The plans of all pools, and the only hand that changes their states."""

    def __init__(self, ledger: WatchedLedger) -> None:
        self.ledger = ledger

    def get(self, id: str) -> Record[Kept]:
        record = self.ledger.records.get("plan", id)
        if record is None:
            raise UnknownError(f"no plan {id[:NAME]!r}: `placer history` lists them")
        return record

    def file(self, id: str) -> bytes:
        return self.ledger.records.blob("plan", self.get(id).id) or b""

    def in_state(self, pool: str, *states: PlanState, width: int = 0) -> list[Record[Kept]]:
        """Newest first; for engines of this width, 0 for any."""
        found = [one for one in self.ledger.open("plan", pool) if one.value.state in states]
        return [one for one in found if not width or one.value.is_for(width)]

    def propose(self, group: Group, plan: Plan, before: str, reason: str) -> Record[Kept]:
        """Keep a plan that starts from the map with this digest; "" if it starts anywhere. It takes
        the place of those that wait."""
        cost, fit = plan.move_cost, plan.fit
        kept = Kept(
            PlanState.PROPOSED,
            digest=plan.placement.digest,
            before=before,
            moved=cost.moved if cost else 0,
            moved_bytes=cost.moved_bytes if cost else 0,
            gain=plan.gain or 0.0,
            whole_gain=plan.whole_gain,
            width=group.ranks,
            engines=tuple(group.engines),
            epoch=self._next_epoch(),
            before_s=fit.before.step_s if fit else None,
            after_s=fit.after.step_s if fit else None,
            reasons=(reason, *_reasons(plan)),
        )
        text = plan_text(plan).encode()
        self.ledger.keep_placement(plan.placement)
        pool = group.pool
        waiting = self.in_state(pool, *WAITING, width=group.ranks)
        id = self.ledger.next_id("plan", "plan")
        record = self.ledger.write("plan", id, reason, kept, pool=pool, final=False, blob=text)
        for one in waiting:
            self.change_state(one, PlanState.SUPERSEDED, f"{record.id} takes its place")
        return record

    def approve(
        self,
        id: str,
        version: int,
        reason: str,
        approver: str = "",
        digest: str = "",
        key: str = "",
    ) -> Record[Kept]:
        """Raises Conflict unless ``version`` is the newest, 0 is whichever that is; and FleetError
        for another digest than the plan's. The same key again is the same approval, whatever became
        of the plan since."""
        record = self.get(id)
        if digest and digest != record.value.digest:
            raise FleetError(
                f"{id} leads to {record.value.digest}, and what is approved is {digest}: look at "
                "the plan again"
            )
        if key and key == record.value.key:
            return record
        self._check_version(record, version)
        if record.value.state is PlanState.APPROVED:
            return record
        if record.value.state is not PlanState.PROPOSED:
            raise FleetError(f"{id} is {record.value.state}: only a proposed plan can be approved")
        return self.change_state(record, PlanState.APPROVED, reason, approver=approver, key=key)

    def reject(self, id: str, version: int, reason: str, approver: str) -> Record[Kept]:
        """Raises Conflict as ``approve`` does, and FleetError for a plan that does not wait."""
        record = self.get(id)
        self._check_version(record, version)
        if record.value.state is PlanState.REJECTED:
            return record
        if record.value.state not in WAITING:
            raise FleetError(
                f"{id} is {record.value.state}: only a plan that waits can be rejected; what runs "
                f"is taken back by placer rollback {record.pool}"
            )
        return self.change_state(record, PlanState.REJECTED, reason, approver=approver)

    def rejected(self, group: Group, plan: Plan, before: str, window_s: float) -> str:
        """Why this plan is not to be proposed again: the last one from this map was rejected, and
        leads to the same or was the last word in this window. Empty if it may be."""
        for record in self.ledger.records.newest("plan", limit=LATELY, pool=group.pool):
            kept = record.value
            if not kept.is_for(group.ranks) or kept.before not in ("", before):
                continue
            if kept.state is not PlanState.REJECTED:
                return ""
            same = kept.digest == plan.placement.digest
            if same or self.ledger.age_s(record) < window_s:
                who = f" by {kept.approver}" if kept.approver else ""
                what = "the same plan" if same else "the last one"
                return f"{what}, {record.id}, was rejected{who}: {record.reason}"
        return ""

    def _check_version(self, record: Record[Kept], version: int) -> None:
        if version and version != record.version:
            raise Conflict(replace(record, version=version + 1), record.version)

    def _next_epoch(self) -> int:
        known = (record.value.epoch for record in self.ledger.records.newest("plan"))
        return max(int(self.ledger.clock.now() * 1000), max(known, default=0) + 1)

    def change_state(
        self, record: Record[Kept], state: PlanState, reason: str, **changes: str
    ) -> Record[Kept]:
        """Raises Conflict if somebody changed it since. ``changes`` are of other fields."""
        return self.ledger.put(self.next_record(record, state, reason, **changes))

    def next_record(
        self, record: Record[Kept], state: PlanState, reason: str, **changes: str
    ) -> Record[Kept]:
        """What ``change_state`` writes down, to be put together with something else."""
        kept = replace(record.value, state=state, **changes)  # type: ignore[arg-type]
        now_s = self.ledger.clock.now()
        return record.next(now_s, reason, value=kept, final=state not in OPEN)


def _reasons(plan: Plan) -> tuple[str, ...]:
    mended = [f"mends: {rule}" for rule in plan.mends]
    moved = [f"layer {one.layer}, expert {one.expert}: {one.reason}" for one in plan.moves]
    return (*mended[:MOST_REASONS], *moved[:MOST_REASONS])
