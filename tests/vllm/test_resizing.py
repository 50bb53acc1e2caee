"""Agents on real gloo groups that grow and shrink as vLLM's elastic EP does it: 2 -> 4 -> 2.

No rank ever waits for one that does not come: a hang fails the test that has it.
"""

from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: make test-vllm installs it")

from placer.agent.vllm.verdict import AGREEMENT
from tests.vllm.gloo import Four, Told

TWO, ALL = [0, 1], [0, 1, 2, 3]
FOR_TWO, AGAIN_FOR_TWO, FOR_FOUR = [3, 2, 1, 0], [0, 3, 1, 2], [0, 1, 2, 3, 3, 2, 1, 0]


@pytest.fixture(scope="module")
def processes() -> Iterator[Four]:
    found = Four()
    yield found
    found.close()


@pytest.fixture
def four(processes: Four) -> Four:
    processes.begin_anew()
    return processes


def two_with_agents(four: Four) -> None:
    """Ranks 0 and 1 serve, and hold a plan."""
    four.join(TWO)
    four.do(TWO, "start_agent", AGREEMENT)
    four.do(TWO, "offer", 1, FOR_TWO)
    assert maps(four.rearrange(TWO)) == [FOR_TWO] * 2


def grow(four: Four, agents: list[int], version: int = AGREEMENT) -> None:
    """To four ranks, the new ones with the map of the old, as far as that goes."""
    four.join(ALL)
    four.do(agents, "start_agent", version)
    told = four.rearrange(ALL)
    assert not any(one.voted for one in told)


def maps(told: list[Told]) -> list[list[int]]:
    return [one.map for one in told]


def test_the_first_rearrangement_of_an_engine_already_applies_a_plan(four: Four) -> None:
    four.join(TWO)
    four.do(TWO, "start_agent", AGREEMENT)
    four.do(TWO, "offer", 1, FOR_TWO)
    told = four.rearrange(TWO)
    assert [(one.map, one.voted, one.epoch, one.condition) for one in told] == [
        (FOR_TWO, True, 1, "")
    ] * 2


def test_a_plan_is_applied_at_every_width(four: Four) -> None:
    two_with_agents(four)
    grow(four, [2, 3])
    four.do(ALL, "offer", 2, FOR_FOUR)
    told = four.rearrange(ALL)
    assert [(one.map, one.epoch, one.condition) for one in told] == [(FOR_FOUR, 2, "")] * 4
    assert {(one.slots, one.ep_size) for one in told} == {(8, 4)}
    told = four.rearrange(ALL, to=2)  # what leaves hands its experts over
    assert not any(one.voted for one in told)
    four.join(TWO)
    four.do(TWO, "look")  # after a step
    four.do(TWO, "offer", 3, AGAIN_FOR_TWO)
    told = four.rearrange(TWO)
    assert [(one.map, one.epoch, one.condition) for one in told] == [(AGAIN_FOR_TWO, 3, "")] * 2
    assert {(one.slots, one.ep_size) for one in told} == {(4, 2)}


def test_after_the_verdict_the_map_stands_unless_all_vote_for_another(four: Four) -> None:
    two_with_agents(four)
    four.do([0], "offer", 2, AGAIN_FOR_TWO)
    told = four.rearrange(TWO)
    assert [(one.map, one.voted) for one in told] == [(FOR_TWO, True)] * 2
    four.do([1], "offer", 2, AGAIN_FOR_TWO)
    assert maps(four.rearrange(TWO)) == [AGAIN_FOR_TWO] * 2


def test_a_plan_for_the_old_width_is_forgotten(four: Four) -> None:
    two_with_agents(four)
    four.do(TWO, "offer", 2, AGAIN_FOR_TWO)
    grow(four, [2, 3])
    before, after = four.rearrange(ALL), four.rearrange(ALL)
    assert maps(before) == maps(after)
    assert {(one.epoch, one.digest) for one in after} == {(0, "")}


@pytest.mark.parametrize("missing", ALL)
def test_a_rank_without_an_agent_leaves_all_to_the_engine_and_is_named(
    four: Four, missing: int
) -> None:
    four.join(ALL)
    agents = [rank for rank in ALL if rank != missing]
    four.do(agents, "start_agent", AGREEMENT)
    four.do(agents, "offer", 1, FOR_FOUR)
    seen = [four.rearrange(ALL) for _ in range(3)]
    assert not any(one.voted for told in seen for one in told)
    assert len({tuple(told[0].map) for told in seen}) == 3  # the engine's policy goes on
    for rank in agents:
        assert f"no agent on rank {missing}: set PLACER_AGENT there" in seen[-1][rank].condition


def test_new_ranks_without_agents_leave_all_to_the_engine(four: Four) -> None:
    two_with_agents(four)
    grow(four, [])
    told = [four.rearrange(ALL) for _ in range(2)][-1]
    assert not any(one.voted for one in told)
    for rank in TWO:
        assert "no agent on rank 2, 3: set PLACER_AGENT there" in told[rank].condition


def test_a_rank_of_another_version_leaves_all_to_the_engine_and_is_named(four: Four) -> None:
    two_with_agents(four)
    grow(four, [2, 3], version=AGREEMENT + 1)
    told = [four.rearrange(ALL) for _ in range(2)][-1]
    assert not any(one.voted for one in told)
    assert "another version's agent on rank 2, 3: install the same placer" in told[0].condition
    assert "another version's agent on rank 0, 1" in told[3].condition


def test_ranks_that_leave_take_a_missing_agent_with_them(four: Four) -> None:
    two_with_agents(four)
    grow(four, [2])
    assert "no agent on rank 3" in four.rearrange(ALL)[0].condition
    four.rearrange(ALL, to=2)
    four.join(TWO)
    four.rearrange(TWO)
    four.do(TWO, "offer", 5, AGAIN_FOR_TWO)
    told = four.rearrange(TWO)
    assert [(one.map, one.condition) for one in told] == [(AGAIN_FOR_TWO, "")] * 2


@pytest.mark.parametrize("missing", ALL)
def test_what_an_earlier_group_left_in_the_store_is_no_agent(four: Four, missing: int) -> None:
    """All ranks had agents and a verdict there, before one was started again without."""
    four.join(ALL, keys="same")
    four.do(ALL, "start_agent", AGREEMENT)
    four.rearrange(ALL)
    assert all(one.voted for one in four.rearrange(ALL))
    four.do([missing], "stop_agent")
    four.join(ALL, keys="same")
    for _ in range(3):
        assert not any(one.voted for one in four.rearrange(ALL))


def test_two_groups_in_a_row_with_one_store_each_have_a_verdict(four: Four) -> None:
    for _ in range(2):
        four.join(ALL, keys="same")
        four.do(ALL, "start_agent", AGREEMENT)
        four.rearrange(ALL)
        assert all(one.voted for one in four.rearrange(ALL))


def test_a_group_is_noticed_by_each_rank_in_its_own_time(four: Four) -> None:
    """Some when a step has ended, others when the engine rearranges."""
    two_with_agents(four)
    four.join(ALL, keys="same")
    four.do([2, 3], "start_agent", AGREEMENT)
    four.do([1], "look")
    four.rearrange(ALL)
    assert all(one.voted for one in four.rearrange(ALL))
    four.join(ALL, keys="same")
    four.do([1, 3], "look")
    four.rearrange(ALL)
    assert all(one.voted for one in four.rearrange(ALL))


@pytest.mark.parametrize("slow", ALL)
def test_a_rank_that_signs_late_makes_the_verdict_late_on_all(four: Four, slow: int) -> None:
    four.join(ALL)
    four.do(ALL, "start_agent", AGREEMENT)
    four.do([slow], "fail_to_sign")
    assert not any(one.voted for one in four.rearrange(ALL))
    assert all(one.voted for one in four.rearrange(ALL))
