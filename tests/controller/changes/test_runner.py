from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.changes import runner
from controller.changes.operations import Apply, Operation, Phase
from controller.changes.runner import RETRY_S, TRIES, Runner
from controller.changes.targets import pack
from controller.engines.in_memory import MemoryEngine, MemoryPlanner
from controller.ledger.ledger import LedgerFull, Record
from controller.ledger.watched import WatchedLedger
from controller.migration.commands import Command, Discard, Done, Outcome, Refused, Stage
from controller.migration.machine import State
from controller.ports import Relocation
from placer.placement import Placement
from placer.schedule import MigrationSchedule
from tests.builders import a_placement
from tests.controller.tiny_pool import (
    BEGIN_S,
    BYTES,
    GOAL,
    HOME,
    OTHER,
    POOL,
    Disk,
    KilledError,
    Moody,
    a_clock,
    a_config,
    alike,
    in_virtual_time,
)

ONE = ["Stage", "Agree", *["Drop", "Copy", "Commit"] * 2, "Verify"]  # two rounds
COMMANDS = [f"{engine} {command}" for engine in ("e0", "e1") for command in ONE]
EVERY = range(len(COMMANDS))
ASKS = {
    State.STAGING: "Stage", State.AGREEING: "Agree", State.DROPPING: "Drop",
    State.COPYING: "Copy", State.COMMITTING: "Commit", State.VERIFYING: "Verify",
    State.DISCARDING: "Discard",
}  # fmt: skip


class Story:
    """An operation on two engines, from the homes to the goal, and a ledger that outlives us."""

    def __init__(
        self,
        homes: tuple[Placement, Placement] = (HOME, HOME),
        goal: Placement = GOAL,
        **policy: Any,
    ) -> None:
        self.clock, self.disk, self.config = a_clock(BEGIN_S), Disk(None), a_config(**policy)
        self.homes, self.goal = homes, goal
        self.engines = Moody(
            {
                name: MemoryEngine(home, BYTES)
                for name, home in zip(("e0", "e1"), homes, strict=True)
            }
        )
        self.start()
        digests = [self.ledger.keep_placement(one) for one in (goal, *homes)]
        kept = dict(zip(("e0", "e1"), digests[1:], strict=True))
        change = Apply("plan-1", digests[0])
        began = Operation("op-1", "", POOL, change, BYTES, BEGIN_S, len(kept), "e0")
        told = {"pool": POOL, "final": False, "blob": pack(kept)}
        self.ledger.write("operation", "op-1", "go", began, **told)

    def start(self) -> None:
        """Another controller, that knows what was written down."""
        self.ledger = WatchedLedger(self.disk, self.clock)
        self.runner = Runner(self.ledger, self.engines, self.config, MemoryPlanner(self.clock))

    @property
    def record(self) -> Record[Any]:
        found = self.disk.get("operation", "op-1")
        assert found is not None
        return found

    async def run(self, is_restart: bool = False) -> Operation:
        """To its end, however often the controller is killed."""
        while True:
            try:
                return (await self.runner.run(self.record, is_restart)).value
            except KilledError:
                self.start()
                is_restart = True

    def maps(self) -> list[Placement]:
        return [one.placement for one in self.engines.engines.values()]

    def stand_at(self, *wanted: Placement) -> bool:
        return all(alike(one, other) for one, other in zip(self.maps(), wanted, strict=True))

    @property
    def is_where_it_says(self) -> bool:
        ends = {Phase.SUCCEEDED: (self.goal, self.goal), Phase.ROLLED_BACK: self.homes}
        return self.stand_at(*ends[self.record.value.phase])


@in_virtual_time
async def test_engines_are_changed_one_after_the_other() -> None:
    story = Story()
    ended = await story.run()
    assert story.engines.names == COMMANDS
    assert (ended.phase, ended.why, story.stand_at(GOAL, GOAL)) == ("succeeded", "", True)
    assert (ended.moved, ended.copied_bytes) == (8, 8 * BYTES)  # 2 engines x 2 layers x a swap
    assert (story.record.final, story.record.reason) == (True, "go")


@in_virtual_time
async def test_what_is_about_to_be_asked_is_written_down_before() -> None:
    story = Story()
    story.engines.moods = {4: "refused"}  # so that it goes back, too

    def look(number: int) -> None:
        written, (engine, command) = story.record.value, story.engines.asked[number]
        assert (written.engine, ASKS[written.state]) == (engine, type(command).__name__)
        assert (written.epoch, story.record.version) == (command.epoch, number + 1)

    story.engines.before = look
    await story.run()
    assert story.engines.names[5] == "e0 Discard"


@in_virtual_time
async def test_an_engine_that_is_there_already_is_verified_and_left_alone() -> None:
    story = Story((GOAL, HOME))
    ended = await story.run()
    assert story.engines.names[:3] == ["e0 Stage", "e0 Agree", "e0 Verify"]
    assert (ended.moved, story.stand_at(GOAL, GOAL)) == (4, True)


@in_virtual_time
async def test_epochs_grow_from_attempt_to_attempt_even_if_the_clock_does_not() -> None:
    story = Story()
    story.engines.moods = {15: "lost"}
    await story.run()
    stages = [one.epoch for _, one in story.engines.asked if isinstance(one, Stage)]
    assert len(stages) == 4  # e0, e1, and both back
    assert stages == sorted(set(stages))


@pytest.mark.parametrize("number", EVERY)
@pytest.mark.parametrize("mood", ["refused", "lost", "lost, done", "silent", "silent, done"])
@in_virtual_time
async def test_if_a_command_fails_all_engines_go_back(
    number: int, mood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "DEADLINE_S", 0.0)
    story = Story()
    story.engines.moods = {number: mood}
    ended = await story.run()
    reasons = {"refused": "not today", "lost": "rank 1 is gone", "silent": "no answer in time"}
    reason = reasons[mood.split(",")[0]]
    engine, command = COMMANDS[number].split()
    state = next(state for state, asks in ASKS.items() if asks == command)
    assert ended.phase == "rolled back"
    assert ended.why.startswith(f"{engine}: {state}")
    assert ended.why.endswith(reason)
    assert story.stand_at(HOME, HOME)
    assert story.engines.names[: number + 2] == [*COMMANDS[: number + 1], f"{engine} Discard"]


@pytest.mark.parametrize("number", EVERY)
@pytest.mark.parametrize("is_before", [True, False])
@in_virtual_time
async def test_an_operator_can_have_it_back_at_any_moment(number: int, is_before: bool) -> None:
    story = Story()

    def abort(at: int) -> None:
        if at == number:
            story.runner.abort(story.record, "ann wants it back", "key-7")

    setattr(story.engines, "before" if is_before else "after", abort)
    ended = await story.run()
    assert (ended.phase, ended.why) == ("rolled back", "ann wants it back")
    assert ended.back_key == "key-7"
    assert story.stand_at(HOME, HOME)
    engine = COMMANDS[number].split()[0]
    assert story.engines.names[number + 1] == f"{engine} Discard"


@pytest.mark.parametrize("number", EVERY)
@pytest.mark.parametrize("mood", ["killed", "killed, done"])
@in_virtual_time
async def test_a_controller_that_was_killed_goes_on_to_the_same_goal(
    number: int, mood: str
) -> None:
    story = Story()
    story.engines.moods = {number: mood}
    ended = await story.run()
    assert (ended.phase, ended.why, story.stand_at(GOAL, GOAL)) == ("succeeded", "", True)
    engine = COMMANDS[number].split()[0]
    assert story.engines.names[number + 1] == f"{engine} Discard"


@pytest.mark.parametrize("number", range(1, 20))
@in_virtual_time
async def test_killed_on_the_way_back_it_goes_on_back(number: int) -> None:
    story = Story()
    story.engines.moods = {12: "refused", 12 + number: "killed, done"}
    assert (await story.run()).phase == "rolled back"
    assert story.stand_at(HOME, HOME)


@in_virtual_time
async def test_an_abort_is_kept_for_the_next_controller() -> None:
    story = Story()
    old = story.runner
    old.abort(story.record, "ann wants it back", "key-7")
    story.runner = Runner(old.ledger, old.engines, old.config, old.planner)  # the old one is killed
    ended = await story.run(is_restart=True)
    assert (ended.phase, ended.why) == ("rolled back", "ann wants it back")
    assert ended.back_key == "key-7"
    assert not [name for name in story.engines.names if "Drop" in name or "Copy" in name]


@pytest.mark.parametrize("number", EVERY)
@in_virtual_time
async def test_without_room_in_the_ledger_nothing_moves_until_there_is(number: int) -> None:
    story = Story()
    story.engines.after = lambda at: setattr(story.disk, "is_full", at == number)
    with pytest.raises(LedgerFull):
        await story.run()
    stood, asked = story.maps(), len(story.engines.asked)
    with pytest.raises(LedgerFull):
        await story.run(is_restart=True)
    assert (story.maps(), len(story.engines.asked)) == (stood, asked) == (stood, number + 1)
    story.disk.is_full = False
    assert (await story.run(is_restart=True)).phase == "succeeded"
    assert story.stand_at(GOAL, GOAL)


@pytest.mark.parametrize("number", EVERY)
@in_virtual_time
async def test_an_engine_that_is_gone_for_good_halts_it(number: int) -> None:
    story = Story()
    name = COMMANDS[number].split()[0]
    engine = story.engines.engines[POOL, name]

    def leave(at: int) -> None:
        engine.is_gone = engine.is_gone or at == number

    story.engines.before = leave
    ended = await story.run()
    assert (ended.phase, ended.engine, ended.tries) == ("halted", name, TRIES)
    assert "the engine is gone" in ended.why
    assert ended.why.endswith("when its engines are well, placer rollback chat")
    assert story.clock.now() == BEGIN_S + TRIES * RETRY_S
    assert name == "e0" or alike(story.maps()[0], GOAL)


@in_virtual_time
async def test_an_engine_that_does_not_go_back_halts_it() -> None:
    """It forgets gladly, but takes nothing in."""
    story = Story()
    story.engines.moods = dict.fromkeys(range(5, 200, 2), "refused")  # from the second round on
    ended = await story.run()
    assert (ended.phase, ended.tries) == ("halted", TRIES)
    assert story.engines.names[6:10] == ["e0 Discard", "e0 Stage"] * 2
    assert story.clock.now() == BEGIN_S + TRIES * RETRY_S


@in_virtual_time
async def test_copies_take_as_long_as_their_budget_gives_them() -> None:
    """A round copies two experts: a minute, at two experts a minute."""
    story = Story(bytes_per_minute=2 * BYTES)
    await story.run()
    assert story.clock.now() == BEGIN_S + 4 * 60


@in_virtual_time
async def test_without_a_budget_nothing_waits() -> None:
    story = Story()
    await story.run()
    assert story.clock.now() == BEGIN_S


@in_virtual_time
async def test_a_way_that_the_budget_does_not_allow_is_refused() -> None:
    story = Story(scratch_slots=0)
    ended = await story.run()
    assert (ended.phase, story.stand_at(HOME, HOME)) == ("rolled back", True)
    assert "scratch_slots is 0" in ended.why
    assert story.engines.names == ["e0 Discard", "e0 Stage", "e0 Agree", "e0 Verify"]


class Counting(MemoryPlanner):
    asked = 0  # for a way

    async def scheduled(self, relocation: Relocation) -> MigrationSchedule:
        self.asked += 1
        return await super().scheduled(relocation)


@in_virtual_time
async def test_a_way_is_looked_for_once_for_gpus_that_hold_the_same_in_other_slots() -> None:
    story = Story((HOME, a_placement([[1, 0, 3, 2], [0, 1, 3, 2]])))
    story.runner.planner = planner = Counting(story.clock)
    await story.run()
    assert story.stand_at(GOAL, GOAL)
    assert planner.asked == 1


class Broken(MemoryPlanner):
    """Cannot find a way to anything but what stands."""

    async def scheduled(self, relocation: Relocation) -> MigrationSchedule:
        if relocation.before.digest != relocation.after.digest:
            raise ValueError("zip() argument 2 is longer")
        return await super().scheduled(relocation)


@in_virtual_time
async def test_a_way_that_a_bug_keeps_from_being_found_is_refused_and_not_tried_for_ever() -> None:
    story = Story()
    story.runner.planner = Broken(story.clock)
    ended = await story.run()
    assert (ended.phase, story.stand_at(HOME, HOME)) == ("rolled back", True)
    assert f"no rounds were found from {HOME.digest} to {GOAL.digest}: a bug" in ended.why


class ByItself(Moody):
    """Takes whole plans: what is staged stands by the time it is verified."""

    def moves_itself(self, pool: str, engine: str) -> bool:
        return True

    async def carry_out(self, pool: str, engine: str, command: Command) -> Outcome:
        self.asked.append((engine, command))
        if len(self.asked) - 1 in self.moods:
            return Refused("not today")
        if isinstance(command, Stage):
            self.engines[pool, engine].placement = command.after
        assert not isinstance(command, Discard) or command.epoch
        return Done()


@in_virtual_time
async def test_an_engine_that_moves_by_itself_is_asked_for_no_rounds() -> None:
    story = Story()
    story.runner.engines = story.engines = ByItself(
        {"e0": MemoryEngine(HOME), "e1": MemoryEngine(HOME)}, {5: "refused"}
    )
    ended = await story.run()
    there = [
        f"{name} {command}" for name in ("e0", "e1") for command in ("Stage", "Agree", "Verify")
    ]
    back = [
        f"{name} {command}"
        for name in ("e1", "e0")
        for command in ("Discard", "Stage", "Agree", "Verify")
    ]
    assert story.engines.names == [*there, *back[:4], *back[5:]]
    assert (ended.phase, story.stand_at(HOME, HOME)) == ("rolled back", True)


def placements() -> st.SearchStrategy[Placement]:
    """Of 4 experts in 3 slots on each of 2 ranks: two have a replica, at times on the same rank."""
    row = st.tuples(st.permutations(range(4)), st.tuples(st.integers(0, 3), st.integers(0, 3)))
    shuffled = row.flatmap(lambda made: st.permutations([*made[0], *made[1]]))
    rows = st.lists(shuffled, min_size=2, max_size=2)
    return rows.map(lambda table: Placement(np.array(table), 4, 2))


MOODS = ["refused", "lost", "lost, done", "killed", "killed, done", "abort"]


@settings(max_examples=50)
@given(
    homes=st.tuples(placements(), placements()),
    goal=placements(),
    moods=st.dictionaries(st.integers(0, 30), st.sampled_from(MOODS), max_size=TRIES - 1),
    lanes=st.integers(1, 3),
    scratch_slots=st.integers(1, 2),
)
@example((HOME, OTHER), GOAL, {4: "killed, done", 5: "lost", 9: "refused", 14: "abort"}, 1, 1)
def test_whatever_happens_it_ends_where_it_says_and_no_expert_is_ever_missing(
    homes: tuple[Placement, Placement],
    goal: Placement,
    moods: dict[int, str],
    lanes: int,
    scratch_slots: int,
) -> None:
    story = Story(homes, goal, rank_bytes=lanes * BYTES, scratch_slots=scratch_slots)
    story.engines.moods = {at: mood for at, mood in moods.items() if mood != "abort"}

    def abort(at: int) -> None:
        if moods.get(at) == "abort":
            story.runner.abort(story.record, "back")

    story.engines.before = abort
    ended = story.clock.run(story.run())  # Moody looks for missing experts
    assert story.is_where_it_says
    assert ended.is_final
