"""The one loop: observe, decide, act. Everything that it calls is pure or a port."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from controller.changes.arbiter import Arbiter
from controller.changes.forms import READERS, Acknowledgement
from controller.changes.operations import Operation
from controller.changes.plans import PlanState
from controller.config import Config, PoolPolicy, told_in_settings
from controller.fleet import snapshots
from controller.fleet.workers import Fleet, Pool, Registration
from controller.ledger.ledger import LedgerError, Record, Unreadable
from controller.ledger.watched import WatchedLedger
from controller.policies.rebalance import Decision, Past, decide
from controller.ports import EngineLostError, Engines, Planner
from placer.arrays import FloatArray
from placer.cost import Score, score
from placer.errors import PlacerError
from placer.placement import Placement
from placer.plan import Hold, Plan
from placer.problem import Problem

AGAIN_S = 600.0  # a decision that stays the same is written down this often
KEPT = {
    "plan": 500, "decision": 2000, "operation": 500, "abort": 500, "acknowledgement": 20_000,
    "snapshot": 20_000,
    "placement": 2000,  # besides those that are in use
}  # fmt: skip
YIELDS = 10  # to the event loop, in which calls are answered

log = logging.getLogger("placer.controller")


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What was seen of a pool and decided. Gains are of the plan that is applied.

    at_s: unix seconds
    load: [layers, experts] tokens, on what stood: ``placement``
    """

    decision: Decision
    at_s: float
    load: FloatArray | None = None
    placement: Placement | None = None
    score: Score | None = None
    predicted_gain: float | None = None
    measured_gain: float | None = None


class Loop:
    """The loop of one controller.

    conditions: what keeps it from its work, by what it was doing
    looks: at what else, by name, it looks every time; they raise PlacerError for a condition
    """

    def __init__(
        self,
        config: Config,
        ledger: WatchedLedger,
        fleet: Fleet,
        engines: Engines,
        planner: Planner,
    ) -> None:
        self.config, self.ledger, self.fleet = config, ledger, fleet
        self.engines, self.planner = engines, planner
        self.arbiter = Arbiter(config, ledger, fleet, engines)
        self.views: dict[str, View] = {}
        self.conditions: dict[str, str] = {}
        self.looks: dict[str, Callable[[], Awaitable[None]]] = {}
        self.counted: Counter[tuple[str, ...]] = Counter()  # decisions by pool and outcome
        # Decisions in a row that wanted to move, since which change.
        self._streaks: dict[str, tuple[int, str]] = {}
        self._written: dict[str, tuple[str, float]] = {}  # outcome, and when
        self._acknowledged: dict[str, Acknowledgement] = {}
        ledger.records.readers = READERS
        try:
            snapshots.recall(ledger, fleet, lambda pool: config.of(pool).window_s)
            for kind in (*KEPT, "ids"):  # so that what cannot be read is named from the start
                ledger.records.newest(kind)
        except LedgerError as error:
            self.conditions["ledger"] = str(error)

    def told(self) -> dict[str, str]:
        """Conditions, and what cannot be read in the ledger."""
        left_out = {
            f"{one.kind} {one.id}": f"{one.why} (version {one.version} of it): left out"
            for one in self.ledger.records.left_out()
        }
        return {**left_out, **self.conditions}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.tick()
            await self.ledger.clock.sleep(self.config.every_s)

    async def tick(self) -> None:
        """Look at every pool, and begin what is approved. What goes wrong with one is a condition,
        never the end."""
        self.fleet.forget()
        await self._try("ledger", self._keep_house())
        await self._try("operations", self.arbiter.resume())
        for what, look in self.looks.items():
            await self._try(what, look())
        pools = list(self.fleet.pools.values())
        async with asyncio.TaskGroup() as looks:
            async for pool in self._in_turn(pools):
                looks.create_task(self._try(pool.name, self._look(pool)))
        async for pool in self._in_turn(pools):
            await self._try(f"{pool.name}: approved plans", self._begin_approved(pool))
            await self._try(f"{pool.name}: snapshot", self._snapshot(pool))

    def acknowledge(self, registration: Registration) -> None:
        """Write down what a worker newly acknowledges or refuses."""
        now, worker = registration, registration.id
        news = Acknowledgement(now.epoch, now.digest, now.refused_epoch, now.refused)
        names = (worker.pool, worker.engine, worker.worker)
        id = "/".join(name.replace("%", "%25").replace("/", "%2F") for name in names)
        body = asdict(news)
        if not any(body.values()) or self._acknowledged.get(id) == news:
            return
        reason = now.refused if now.refused_epoch > now.epoch else ""
        reason = reason or f"epoch {now.epoch} is applied"
        try:
            last = None
            with suppress(Unreadable):
                last = self.ledger.records.get("acknowledgement", id)
            if last is None or last.body != body:
                version = self.ledger.records.version("acknowledgement", id) + 1
                told = (self.ledger.clock.now(), reason, body, worker.pool)
                self.ledger.put(Record("acknowledgement", id, version, *told))
        except LedgerError as error:  # the worker is served all the same
            self.conditions["acknowledgements"] = str(error)
        else:
            self._acknowledged[id] = news
            self.conditions.pop("acknowledgements", None)

    async def _keep_house(self) -> None:
        retention_s = self.config.retention_days * 86_400
        for kind, keep in KEPT.items():
            needed = self.arbiter.placements_in_use() if kind == "placement" else ()
            self.ledger.prune(kind, keep, retention_s, needed)

    async def _snapshot(self, pool: Pool) -> None:
        snapshots.take(self.ledger, pool)

    async def _look(self, pool: Pool) -> None:
        """Observe one pool, and decide."""
        now, policy = self.ledger.clock.now(), self.config.of(pool.name)
        past, change = self._past(pool.name)
        running = self.arbiter.running
        if running is not None and running.pool == pool.name:  # what stands is in between
            reason = f"{running.id} is at work: {Operation.of(running).progress}"
            decision = Decision("wait", reason, past.streak)
            last = self.views.get(pool.name, View(decision, now))
            self._decided(pool.name, replace(last, decision=decision, at_s=now))
            return
        problem = await self.problem(pool)
        if isinstance(problem, Hold):
            self._streaks[pool.name] = 0, change
            self._decided(pool.name, View(Decision("hold", problem.reason), now))
            return
        answer = await self.planner.answer(problem, policy.optimizer)
        if isinstance(answer, Hold) and (
            drifted := await self.arbiter.drifted(pool, problem.start)
        ):
            # Started again, or changed by hand: where it is, nobody planned for.
            reason = f"{', '.join(drifted)} stands elsewhere than the rest of the pool: to join it"
            answer = Plan(problem.start, reason, problem.model, problem.topology)
        decision = decide(answer, past, policy, now)
        self._streaks[pool.name] = decision.streak, change
        predicted, measured = self._gains(problem, pool)
        stands = problem.start
        known = None if stands.lost else score(problem, stands)
        load = problem.profile.load
        view = View(decision, now, load, stands, known, predicted, measured)
        if decision.outcome in ("propose", "act") and isinstance(answer, Plan):
            view = self._propose(pool, problem, answer, view)
        self._decided(pool.name, view)

    async def problem(self, pool: Pool) -> Problem | Hold:
        """What an optimizer would be asked about a pool now; or why there is nothing to ask."""
        policy = self.config.of(pool.name)
        profile = pool.profile(policy.phase, self.ledger.clock.monotonic())
        tokens = profile.tokens if profile else 0
        if profile is None or tokens < policy.least_tokens:
            return Hold(
                f"{tokens:,.0f} tokens of {policy.phase} traffic in {policy.window_s:g} s < "
                f"{policy.least_tokens:,} (least_tokens): too few to tell"
            )
        try:
            current = await self.arbiter.stands(pool)
        except EngineLostError as error:
            return Hold(f"{error}: it is not known what stands")
        return _problem(pool, policy, profile, current)

    def _propose(self, pool: Pool, problem: Problem, plan: Plan, view: View) -> View:
        """Keep the plan, unless an earlier one for this map waits: approved, for its turn; or for
        approval, as long as it is not too old."""
        before = problem.start.digest
        policy, decision = self.config.of(pool.name), view.decision
        waiting = self.arbiter.plans.in_state(pool.name, PlanState.PROPOSED, PlanState.APPROVED)
        for record in waiting:
            approved = record.body["state"] == PlanState.APPROVED
            fresh = self.ledger.age_s(record) < policy.window_s
            if record.body["before"] in ("", before) and (approved or fresh):
                what = "its turn" if approved else "approval"
                reason = f"{record.id} waits for {what}: {record.reason}"
                return replace(view, decision=Decision("propose", reason, decision.streak))
        with told_in_settings():
            record = self.arbiter.propose(pool.name, plan, before, plan.reason)
        if decision.outcome == "act":
            record = self.arbiter.plans.approve(record.id, record.version, "mode is automatic")
        reason = f"{record.id}: {decision.reason}"
        return replace(view, decision=replace(decision, reason=reason))

    async def _begin_approved(self, pool: Pool) -> None:
        for record in self.arbiter.plans.in_state(pool.name, PlanState.APPROVED):
            closed = self.config.of(pool.name).closed(self.ledger.clock.now())
            if self.arbiter.running is not None or closed:
                return
            await self.arbiter.begin(record, key="", reason=record.reason)

    def _past(self, pool: str) -> tuple[Past, str]:
        """And the last change's id; empty if there was none."""
        last, failures = self.arbiter.history.last_changes(pool)
        change = last.id if last else ""
        streak, since = self._streaks.get(pool, (0, change))
        # What was wanted before the change is of no interest.
        streak = streak if since == change else 0
        return Past(streak, self.ledger.age_s(last) if last else None, failures), change

    def _gains(self, problem: Problem, pool: Pool) -> tuple[float | None, float | None]:
        """Of the plan that is applied: as predicted, and on today's traffic."""
        applied = self.arbiter.plans.in_state(pool.name, PlanState.APPLIED)
        if not applied or not applied[0].body["before"]:
            return None, None
        try:
            before = self.ledger.placement(applied[0].body["before"])
        except Unreadable:
            return None, None
        if before.shape != problem.start.shape or problem.start.lost:
            return None, None
        now = score(problem, problem.start).step_s / score(problem, before).step_s
        return applied[0].body["gain"], 1 - now

    def _decided(self, pool: str, view: View) -> None:
        """Remember, and write down what is new."""
        self.views[pool] = view
        self.counted[pool, view.decision.outcome] += 1
        now_s = self.ledger.clock.monotonic()
        outcome, written_s = self._written.get(pool, ("", now_s))
        if outcome == view.decision.outcome and now_s - written_s < AGAIN_S:
            return
        body: dict[str, Any] = {**asdict(view.decision)}
        if view.score is not None:
            body["balancedness"] = view.score.balancedness
        id = self.ledger.next_id("decision", "decision")
        self.ledger.write("decision", id, view.decision.reason, body, pool=pool)
        self._written[pool] = view.decision.outcome, now_s

    async def _try(self, what: str, doing: Any) -> None:
        try:
            await doing
        except PlacerError as error:
            if self.conditions.get(what) != str(error):
                log.warning("placer: %s: %s", what, error)
            self.conditions[what] = str(error)
        except Exception as error:
            log.exception("placer: %s", what)
            self.conditions[what] = f"{type(error).__name__}: {error} (a bug: see the log)"
        else:
            self.conditions.pop(what, None)

    async def _in_turn(self, pools: Sequence[Pool]) -> AsyncIterator[Pool]:
        """Agents are answered between two of a thousand pools."""
        for pool in pools:
            if pool is not pools[0]:
                for _ in range(YIELDS):
                    await self.ledger.clock.sleep(0)
            yield pool


def _problem(pool: Pool, policy: PoolPolicy, profile: Any, current: Placement) -> Problem:
    with told_in_settings():
        return Problem(
            model=pool.model,
            topology=policy.hardware(pool.ranks),
            profile=profile,
            slots=pool.slots,
            objective=policy.objective,
            current=current,
        )
