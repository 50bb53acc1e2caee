"""The one loop: observe, decide, act. Everything that it calls is pure or a port."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from controller.changes.arbiter import Arbiter
from controller.changes.runner import Runner
from controller.config import Config
from controller.fleet import snapshots
from controller.fleet.acknowledgements import Acknowledgements
from controller.fleet.homing import Homings
from controller.fleet.pools import Group, Pool, Registration
from controller.fleet.reported import ReportedCapacity
from controller.fleet.traces import SampledRequests
from controller.fleet.workers import Fleet
from controller.ledger.ledger import LedgerError
from controller.ledger.watched import WatchedLedger
from controller.loads import Loads
from controller.policies import POLICIES
from controller.policies.policy import Answer, Decision, Kept, Past, Scaling, Seen
from controller.ports import Capacity, Engines, Metrics, Planner, Unseen
from controller.turns import Turns
from controller.views import View, gains, problem_of
from placer.cost import score
from placer.errors import PlacerError
from placer.plan import Hold, Plan
from placer.problem import Problem

AGAIN_S = 600.0  # a decision that stays the same is written down this often
KEPT = {
    "plan": 500, "decision": 2000, "operation": 500, "abort": 500, "acknowledgement": 20_000,
    "snapshot": 20_000, "reading": 10_000, "policy": 1000, "rank_loads": 500,
    "placement": 2000,  # besides those that are in use
}  # fmt: skip
Key = tuple[str, int]  # a pool's name, and the ranks of its engines that are meant
SIZES = "autoscale"  # the policy that is asked more often
YIELDS = 10  # to the event loop, in which calls are answered
log = logging.getLogger("placer.controller")


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
        metrics: Metrics | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        self.config, self.ledger, self.fleet = config, ledger, fleet
        self.engines, self.planner = engines, planner
        self.traces = SampledRequests(lambda pool: config.of(pool).traces, ledger.clock)
        runner = Runner(ledger, engines, config, planner)
        self.arbiter = Arbiter(config, ledger, fleet, engines, runner)
        self.reported = ReportedCapacity(ledger, fleet)
        gpus = capacity if capacity is not None else self.reported
        self.loads = Loads(config, fleet, self.arbiter, planner, metrics, gpus)
        self.turns = Turns(config, self.arbiter, self.loads, self._try)
        self.views, self.conditions = dict[Key, View](), dict[str, str]()
        self.homings = Homings(self.traces, ledger.clock)
        self.looks: dict[str, Callable[[], Awaitable[None]]] = {}
        self.counted: Counter[tuple[str, ...]] = Counter()  # decisions by pool and outcome
        self._streaks: dict[tuple[Key, str], tuple[int, str]] = {}  # that want to move, since what
        self._written: dict[Key, tuple[View, float]] = {}  # and when
        self._answers: dict[Key, Answer] = {}  # the optimizer's, last
        self._acknowledgements = Acknowledgements(ledger)
        try:
            snapshots.recall(ledger, fleet, lambda pool: config.of(pool).window_s)
            for kind in (*KEPT, "ids", "capacity"):  # what cannot be read is named at once
                ledger.records.newest(kind)
        except LedgerError as error:
            self.conditions["ledger"] = str(error)

    def view(self, pool: Pool) -> View | None:
        """Of the width that most engines have."""
        group = pool.group()
        return self.views.get((group.pool, group.ranks)) if group else None

    def told(self) -> dict[str, str]:
        """Conditions, and what cannot be read in the ledger."""
        left_out = {
            f"{one.kind} {one.id}": f"{one.why} (version {one.version} of it): left out"
            for one in self.ledger.records.left_out()
        }
        return {**left_out, **self.conditions}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as looks:
            looks.create_task(self._follow_loads())
            looks.create_task(self.turns.follow())
            while True:
                await self.tick()
                await self.ledger.clock.sleep(self.config.every_s)

    async def _follow_loads(self) -> None:
        """Beside all else: a plan may take a while to make."""
        while True:
            await self.ledger.clock.sleep(self.loads.every_s or self.config.every_s)
            await self.look_at_sizes()

    async def tick(self) -> None:
        """Look at every pool, and begin what is approved. What goes wrong with one is a condition,
        never the end."""
        self.fleet.forget()
        self.traces.forget()
        await self._try("ledger", self._keep_house())
        await self._try("operations", self.arbiter.resume())
        for what, look in self.looks.items():
            await self._try(what, look())
        pools = list(self.fleet.pools.values())
        seen: set[Key] = set()
        async with asyncio.TaskGroup() as looks:
            async for pool in self._in_turn(pools):
                groups = pool.groups.values()
                for group in groups:
                    what = pool.name if len(groups) == 1 else f"{pool.name} on {group.ranks} ranks"
                    looks.create_task(self._try(what, self._look(group)))
                    seen.add((pool.name, group.ranks))
        self.views = {key: view for key, view in self.views.items() if key in seen}
        await self._try("turns", self.turns.look())
        async for pool in self._in_turn(pools):
            await self._try(f"{pool.name}: snapshot", self._snapshot(pool))

    async def look_at_sizes(self) -> None:
        """Of all pools whose size follows their load."""
        self.loads.forget()
        async with asyncio.TaskGroup() as looks:
            for pool in list(self.fleet.pools.values()):
                if self.config.of(pool.name).autoscale is not None:
                    looks.create_task(self._try(f"{pool.name}: size", self._look_at_size(pool)))

    def acknowledge(self, registration: Registration) -> None:
        """Write down what a worker newly acknowledges or refuses."""
        try:
            if self._acknowledgements.hear(registration):
                self.conditions.pop("acknowledgements", None)
        except LedgerError as error:  # the worker is served all the same
            self.conditions["acknowledgements"] = str(error)

    async def _keep_house(self) -> None:
        retention_s = self.config.retention_days * 86_400
        for kind, keep in KEPT.items():
            needed = self.arbiter.placements_in_use() if kind == "placement" else ()
            self.ledger.prune(kind, keep, retention_s, needed)

    async def _snapshot(self, pool: Pool) -> None:
        snapshots.take(self.ledger, pool)

    async def _look(self, group: Group) -> None:
        """Observe the engines of one pool and width, and decide."""
        now, key, history = self.ledger.clock.now(), (group.pool, group.ranks), self.arbiter.history
        running = history.at_work(*key)
        if running is not None:  # what stands is in between
            reason = f"{running.id} is at work: {running.value.progress}"
            last, decisions = self.views.get(key, View({}, now)), {"": Decision("wait", reason)}
            self._decided(key, replace(last, decisions=decisions, at_s=now))
            return
        stood = history.last_changes(*key)
        asked = await self.question(group)
        answer: Answer
        if isinstance(asked, Hold):
            answer, view = asked, View({}, now)
        else:
            problem, unseen = asked
            answer = await self._answer(group, problem, unseen)
            view = self._view(group, problem, now)
        if history.at_work(*key) is not None or history.last_changes(*key) != stood:
            return  # the answer is about where these engines were: something changed them meanwhile
        self._answers[key] = answer
        balance = view.score.balancedness if view.score else 1.0
        scaling = self.loads.scaling(group, balance)
        decisions = await self._ask(group, answer, view, scaling)
        self._decided(key, replace(view, decisions=decisions))

    async def _look_at_size(self, pool: Pool) -> None:
        await self.loads.read(pool)
        if (group := pool.group()) is None:
            return
        key, now = (group.pool, group.ranks), self.ledger.clock.now()
        if self.arbiter.history.at_work(*key) is not None:
            return
        view = self.views.get(key, View({}, now))
        balance = view.score.balancedness if view.score else 1.0
        scaling = self.loads.scaling(group, balance)
        answer = self._answers.get(key, Hold("no optimizer was asked yet"))
        seen = Seen(answer, Past(), self.config.of(pool.name), now, scaling)
        if (decision := POLICIES[SIZES](seen)) is not None:
            decision = await self._take(group, decision, view)
            decisions = {**view.decisions, SIZES: decision}
            self._decided(key, replace(view, decisions=decisions, at_s=now))

    async def _answer(self, group: Group, problem: Problem, unseen: Unseen | None) -> Answer:
        optimizer = self.config.of(group.pool).optimizer
        answer = await self.planner.answer(problem, optimizer, unseen)
        if isinstance(answer, Hold) and (
            drifted := await self.arbiter.drifted(group, problem.start)
        ):
            # Started again, or changed by hand: where it is, nobody planned for.
            reason = f"{', '.join(drifted)} stands elsewhere than the rest of the pool: to join it"
            return Plan(problem.start, reason, problem.model, problem.topology)
        return answer

    def _view(self, group: Group, problem: Problem, now: float) -> View:
        stands = problem.start
        known = None if stands.lost else score(problem, stands)
        return View(
            {}, now, problem.profile.load, stands, known, *gains(problem, group, self.arbiter)
        )

    async def _ask(
        self, group: Group, answer: Answer, view: View, scaling: Scaling | None
    ) -> dict[str, Decision]:
        """What the policies say, in turn, up to the first that wants a change: the arbiter gets
        it."""
        found, settings, key = {}, self.config.of(group.pool), (group.pool, group.ranks)
        last, failures = self.arbiter.history.last_changes(group.pool, group.ranks)
        change, rested_s = (last.id, self.ledger.age_s(last)) if last else ("", None)
        for name, policy in POLICIES.items():
            # What was wanted before the change is of no interest.
            streak, since = self._streaks.get((key, name), (0, change))
            past = Past(streak if since == change else 0, rested_s, failures)
            if (decision := policy(Seen(answer, past, settings, view.at_s, scaling))) is None:
                continue
            self._streaks[key, name] = decision.streak, change
            found[name] = await self._take(group, decision, view)
            if decision.plan is not None or decision.size is not None:
                break
        return found

    async def question(self, group: Group) -> tuple[Problem, Unseen | None] | Hold:
        """What an optimizer would be asked about these engines now, and what its plan would be
        judged on besides; or why there is nothing to ask."""
        policy, unseen = self.config.of(group.pool), None
        if policy.traces.requests:  # now: the window goes on
            unseen = self.traces.unseen(group, policy.phase, policy.least_tokens)
        problem = await problem_of(group, self.config, self.arbiter)
        return problem if isinstance(problem, Hold) else (problem, unseen)

    async def _take(self, group: Group, decision: Decision, view: View) -> Decision:
        """Hand on what a policy wants."""
        if decision.plan is not None:
            return self.arbiter.take(group, decision, decision.plan, view.placement, view.load)
        await self.loads.release(group, decision)
        return await self.loads.take(group, decision)

    def _decided(self, key: Key, view: View) -> None:
        """Remember, and write down what is new."""
        pool, ranks = key
        self.views[key] = view
        self.counted[pool, view.decision.outcome] += 1
        now_s = self.ledger.clock.monotonic()
        last, written_s = self._written.get(key, (None, now_s))
        if now_s - written_s >= AGAIN_S:
            last = None
        balancedness = view.score.balancedness if view.score else None
        for policy, one in view.decisions.items():
            then = last.decisions.get(policy) if last is not None else None
            if then is None or (then.outcome, then.size) != (one.outcome, one.size):
                kept = Kept(one.outcome, one.reason, one.streak, balancedness, policy, ranks)
                id = self.ledger.next_id("decision", "decision")
                self.ledger.write("decision", id, one.reason, kept, pool=pool)
                self._written[key] = view, now_s

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
