"""The agent in two real vLLM workers with expert parallelism, told as one story (see story.py)."""

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")

from placer.cost.balance import rank_load
from placer.profile import Profile, of_trace
from tests.agent.workers import assert_drawn
from tests.vllm.oracle import Oracle
from tests.vllm.story import Story


@pytest.fixture(scope="module")
def oracle(story: Story) -> Oracle:
    return Oracle(story.prompts, story.undisturbed.tokens)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_counts_are_what_transformers_own_router_gives(
    story: Story, oracle: Oracle, phase: str
) -> None:
    counted, true = story.recorded[phase], oracle.profile(phase)
    assert counted.tokens == true.tokens
    for name in ("load", "coactivation"):
        np.testing.assert_array_equal(getattr(counted, name), getattr(true, name), err_msg=name)
    assert counted.transitions is not None
    assert_drawn(counted.transitions, true)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_steps_are_timed_within_the_time_that_was_recorded(story: Story, phase: str) -> None:
    """No more steps than tokens, and none of them outside of the window."""
    counted = story.recorded[phase]
    assert counted.pace is not None
    assert 0 < counted.pace.steps <= counted.tokens
    assert 0 < counted.pace.busy_s < counted.pace.window_s == counted.window_s


def test_the_trace_holds_every_request_token_by_token(story: Story, oracle: Oracle) -> None:
    assert story.trace.sequences == len(story.prompts)
    assert _sorted(story.trace.token_ids, story.trace.seq_lens) == sorted(oracle.sequences)
    both = [story.recorded["prefill"].load, story.recorded["decode"].load]
    np.testing.assert_array_equal(of_trace(story.trace).load, sum(both))


def test_a_plan_is_applied_while_streams_generate_and_no_token_differs(story: Story) -> None:
    assert story.applied.returncode == 0, story.applied.stderr
    assert story.disturbed.tokens == story.undisturbed.tokens
    print(
        f"\nlongest pause between two tokens of a stream: {story.disturbed.pause_s * 1e3:.0f} ms, "
        f"undisturbed {story.undisturbed.pause_s * 1e3:.0f} ms"
    )


def test_experts_stand_where_the_plan_says_and_every_rank_reports_its_digest(
    story: Story,
) -> None:
    planned = story.plan.placement
    moved = (story.map_before[0] != planned.physical_to_logical).sum()
    print(f"\n{moved} of {planned.physical_to_logical.size} slots hold another expert")
    assert moved
    for table in story.map_after:
        np.testing.assert_array_equal(table, planned.physical_to_logical)
    assert [status.digest for status in story.statuses] == [planned.digest] * 2
    assert [status.epoch for status in story.statuses] == [1, 1]


def test_rank_loads_are_within_two_percent_of_the_prediction(story: Story) -> None:
    both = story.recorded["prefill"].load + story.recorded["decode"].load
    predicted = rank_load(both, story.plan.placement).sum(axis=0)
    measured = story.rank_loads.sum(axis=0)
    off = np.abs(measured / predicted - 1).max()
    print(f"\nrank loads: predicted {predicted}, measured {measured}: {off:.2%} off at most")
    assert off <= 0.02


def test_the_applied_plan_changes_no_token(story: Story) -> None:
    assert story.afterwards.tokens == story.undisturbed.tokens


@pytest.mark.parametrize("kind", ["corrupted", "foreign", "wider", "incomplete"])
def test_every_rank_refuses_a_bad_plan_and_keeps_its_map(story: Story, kind: str) -> None:
    reasons = story.refusals[kind]
    print(f"\n{kind}: {reasons[0]}")
    assert len(reasons) == 2
    assert all(reasons)
    for table in story.map_after_refusals:
        np.testing.assert_array_equal(table, story.plan.placement.physical_to_logical)


def test_refusals_name_both_models_and_both_widths(story: Story) -> None:
    assert "32 layers x 8 experts" in story.refusals["foreign"][0]
    assert "6 layers x 16 experts" in story.refusals["foreign"][0]
    assert "for 4 ranks and the engine has 2" in story.refusals["wider"][0]


def test_ranks_that_hold_different_epochs_keep_the_map(story: Story) -> None:
    for table in story.map_after_disagreement:
        np.testing.assert_array_equal(table, story.plan.placement.physical_to_logical)


def test_a_killed_worker_leaves_readable_files(story: Story) -> None:
    assert {profile.phase for profile in story.after_kill} == {"prefill", "decode"}
    assert all(isinstance(profile, Profile) for profile in story.after_kill)


def _sorted(token_ids: np.ndarray | None, lens: np.ndarray) -> list[list[int]]:
    assert token_ids is not None
    return sorted(part.tolist() for part in np.split(token_ids, np.cumsum(lens)[:-1]))
