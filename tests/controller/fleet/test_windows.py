from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.fleet.windows import Delta, Window
from placer.errors import RoutingError
from placer.pace import Pace
from placer.profile import Profile
from tests.controller.tiny_pool import a_delta

ROWS = [[4, 3, 2, 1], [1, 2, 3, 4]]
PAIRS = np.full((2, 4, 4), 1, dtype=np.uint32) - np.eye(4, dtype=np.uint32)
STEPS = np.full((1, 4, 4), 2, dtype=np.uint32)


def a_window(*deltas: tuple[float, Delta], span_s: float = 10.0, begun_s: float = 0.0) -> Window:
    """Into which each delta came at its time."""
    window = Window(span_s, begun_s)
    for at_s, delta in deltas:
        window.add(delta, at_s)
    return window


def seen(window: Window, now_s: float) -> Profile:
    found = window.profile("decode", 1, now_s)
    assert found is not None
    return found


def with_pairs(**more: Any) -> Delta:
    return a_delta(ROWS, transitions=STEPS, coactivation=PAIRS, **more)


def test_a_window_without_traffic_has_no_profile() -> None:
    assert a_window().profile("decode", 1, 3.0) is None
    assert a_window().tokens == 0


def test_counts_of_all_pushes_are_added() -> None:
    window = a_window((0.0, a_delta(ROWS)), (4.0, a_delta([[1, 0, 0, 0], [0, 0, 0, 1]])))
    profile = seen(window, 4.5)
    assert profile.load.tolist() == [[5, 3, 2, 1], [1, 2, 3, 5]]
    assert (profile.tokens, profile.sequences, window.tokens) == (11, 2, 11)
    assert (profile.phase, profile.top_k, profile.window_s) == ("decode", 1, 4.5)


def test_both_halves_count_until_the_older_is_a_whole_span_old() -> None:
    window = a_window((4.9, a_delta(ROWS)), (9.9, a_delta([[0, 0, 0, 1], [0, 0, 0, 1]])))
    assert (seen(window, 9.9).tokens, seen(window, 9.9).window_s) == (11, 9.9)
    window.roll(10.0)
    assert (seen(window, 10.0).tokens, seen(window, 10.0).window_s) == (1, 5.0)
    window.roll(15.0)
    assert window.tokens == 0


def test_after_a_long_silence_nothing_is_left() -> None:
    window = a_window((1.0, a_delta(ROWS)))
    window.roll(10.0)
    assert window.profile("decode", 1, 10.0) is None


def test_a_clock_that_was_set_back_changes_nothing() -> None:
    window = a_window((100.0, a_delta(ROWS)), (40.0, a_delta(ROWS)), begun_s=98.0)
    assert window.tokens == 20


@given(
    times=st.lists(st.integers(0, 60), min_size=1, max_size=12).map(sorted),
    later=st.integers(0, 15),
)
def test_it_reaches_back_to_the_half_before_this_one(times: list[int], later: int) -> None:
    """Plainly: time is cut into halves of 5 s, and those of this one and the last count."""
    window, now = Window(10.0, 0.0), times[-1] + later
    for at_s in times:
        window.add(a_delta([[1, 0, 0, 0]]), float(at_s))
    window.roll(float(now))
    counted = [at_s for at_s in times if at_s // 5 >= now // 5 - 1]
    assert window.tokens == len(counted)
    assert all(now - at_s < 10 for at_s in counted)
    assert all(now - at_s >= 5 for at_s in set(times) - set(counted))


def test_affinity_that_all_tokens_told_is_as_counted() -> None:
    profile = seen(a_window((0.0, with_pairs())), 1.0)
    assert profile.transitions is not None
    assert profile.coactivation is not None
    assert profile.transitions.tolist() == STEPS.tolist()
    assert profile.coactivation.tolist() == PAIRS.tolist()


@pytest.mark.parametrize("silent_s", [0.0, 1.0, 6.0])
def test_affinity_of_a_third_of_the_tokens_stands_for_all(silent_s: float) -> None:
    """Whether the others came before or after, in the same half or in the next one."""
    pushes = [(3.0, with_pairs()), (silent_s, a_delta(ROWS)), (silent_s, a_delta(ROWS))]
    window = a_window(*sorted(pushes, key=lambda push: push[0]))
    profile = seen(window, 6.0)
    assert profile.transitions is not None
    assert profile.coactivation is not None
    assert profile.tokens == 30
    assert profile.transitions == pytest.approx(3 * STEPS)
    assert profile.coactivation == pytest.approx(3 * PAIRS)
    assert profile.load.tolist() == [[12, 9, 6, 3], [3, 6, 9, 12]]


def test_affinity_of_both_halves_is_added() -> None:
    profile = seen(a_window((3.0, with_pairs()), (6.0, with_pairs())), 6.0)
    assert profile.transitions is not None
    assert profile.transitions.tolist() == (2 * STEPS).tolist()


def test_what_is_counted_later_leaves_an_earlier_profile_alone() -> None:
    window = a_window((0.0, with_pairs()))
    profile = seen(window, 1.0)
    window.add(with_pairs(), 1.0)
    assert profile.transitions is not None
    assert (profile.load.tolist(), profile.transitions.tolist()) == (ROWS, STEPS.tolist())


def test_what_a_worker_may_count() -> None:
    a_delta(ROWS).check(2, 4, 1)
    a_delta([[1, 0, 0, 0], [0, 0, 0, 0]]).check(2, 4, 1)  # a choice that is no expert's


@pytest.mark.parametrize(
    ("delta", "why"),
    [
        (a_delta([[4, 3, 2, 1]]), r"counts of 1 layers x 4 experts, top-1, in a pool of 2 x 4"),
        (a_delta([[4, 3], [2, 1]]), r"2 layers x 2 experts.*is PLACER_POOL the model's\?"),
        (Delta("decode", 2, 10, 1, np.array(ROWS)), r"top-2, in a pool of 2 x 4, top-1"),
        (a_delta(ROWS, tokens=9), r"9 tokens, top-1, but layer 0 counts 10 choices"),
        (a_delta([[1, 0, 0, 0], [1, 1, 0, 0]]), r"1 tokens, top-1, but layer 1 counts 2 choices"),
        (a_delta(ROWS, tokens=0), r"0 tokens"),
        (a_delta([[0] * 4] * 2, tokens=3), r"3 tokens, top-1, but layer 0 counts 0 choices"),
    ],
)
def test_counts_that_cannot_be_are_refused(delta: Delta, why: str) -> None:
    with pytest.raises(RoutingError, match=why):
        delta.check(2, 4, 1)


def top_2(transitions: Any = None, coactivation: Any = None) -> Delta:
    """Of two tokens that both used experts 0 and 1, in both layers."""
    pair = [[0, 2, 0, 0], [2, 0, 0, 0], [0] * 4, [0] * 4]
    drawn = [[1, 0, 0, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    told = {
        "transitions": np.array([drawn] if transitions is None else transitions, np.uint32),
        "coactivation": np.array([pair] * 2 if coactivation is None else coactivation, np.uint32),
    }
    return Delta("decode", 2, 2, 1, np.array([[2, 2, 0, 0]] * 2, np.uint32), **told)


def one(at: tuple[int, int], count: int, shape: tuple[int, int, int]) -> Any:
    """Of all pairs of the first layer that one."""
    pairs = np.zeros(shape, np.int64)
    pairs[0, *at] = count
    return pairs


def both(count: int) -> Any:
    return one((0, 1), count, (2, 4, 4)) + one((1, 0), count, (2, 4, 4))


def test_what_pairs_a_worker_may_count() -> None:
    top_2().check_pairs()
    top_2(one((0, 1), 2, (1, 4, 4)), both(1)).check_pairs()  # some choices were no expert's
    a_delta(ROWS).check_pairs()


@pytest.mark.parametrize(
    ("delta", "why"),
    [
        (top_2(np.ones((1, 4, 4))), "16 transitions in layer 0, of which there can be 2"),
        (top_2(one((0, 1), 3, (1, 4, 4))), "3 transitions in layer 0, of which there can be 2"),
        (top_2(one((2, 0), 1, (1, 4, 4))), "1 transitions from expert 2 in layer 0, .* can be 0"),
        (top_2(one((0, 3), 2, (1, 4, 4))), "2 transitions to expert 3 in layer 0, .* can be 0"),
        (top_2(coactivation=both(3)), "3 co-activations of expert 0 in layer 0, .* can be 2"),
        (top_2(coactivation=one((0, 1), 1, (2, 4, 4))), "not the same both ways"),
        (top_2(coactivation=one((0, 0), 1, (2, 4, 4))), "of an expert with itself"),
        (with_pairs(), "32 transitions in layer 0, of which there can be 10: the counts contra"),
        (
            a_delta(ROWS, transitions=0 * STEPS, coactivation=PAIRS),
            "3 co-activations of expert 0 in layer 0, of which there can be 0",
        ),
        (
            Delta("decode", 3, 4, 1, np.array([[4, 4, 2, 2]]), np.zeros((0, 4, 4), np.uint32),
                  both(5)[:1]),
            "5 co-activations of one pair with expert 0 in layer 0, of which there can be 4",
        ),
    ],
)  # fmt: skip
def test_pairs_that_cannot_be_are_refused(delta: Delta, why: str) -> None:
    with pytest.raises(RoutingError, match=why):
        delta.check_pairs()


@given(st.integers(0, 2**32 - 1))
def test_pairs_of_tokens_that_were_counted_are_as_they_can_be(seed: int) -> None:
    """Counted token by token, some choices being no expert's."""
    rng, layers, experts, top_k, tokens = np.random.default_rng(seed), 3, 5, 3, 7
    load = np.zeros((layers, experts), np.int64)
    coactivation = np.zeros((layers, experts, experts), np.int64)
    transitions = np.zeros((layers - 1, experts, experts), np.int64)
    for _ in range(tokens):
        chosen = [rng.permutation(experts + 1)[:top_k] for _ in range(layers)]
        for layer, mine in enumerate(chosen):
            there = mine[mine < experts]
            load[layer, there] += 1
            coactivation[layer][np.ix_(there, there)] += 1
            drawn = rng.choice(mine), rng.choice(chosen[layer + 1]) if layer + 1 < layers else 9
            if max(drawn) < experts:
                transitions[layer, *drawn] += 1
    coactivation *= 1 - np.eye(experts, dtype=np.int64)
    Delta("decode", top_k, tokens, 1, load, transitions, coactivation).check_pairs()


def test_pairs_are_left_out_before_their_sum_outgrows_its_memory() -> None:
    window = Window(10.0, 0.0)
    for _ in range(3):
        half = np.array([[2**31, 0, 0, 0]] * 2, np.uint32)
        pairs = np.array([[[2**31, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4]], np.uint32)
        window.add(Delta("decode", 1, 2**31, 1, half, pairs, np.zeros((2, 4, 4), np.uint32)), 1.0)
    profile = seen(window, 1.0)
    assert profile.transitions is not None
    assert (profile.tokens, profile.transitions[0, 0, 0]) == (3 * 2**31, 3 * 2**31)


def test_steps_of_workers_add_up_also_those_of_a_half_without_tokens() -> None:
    window = a_window((0.0, a_delta(ROWS)))
    for at_s in (1.0, 1.0, 6.0):
        window.pass_steps(Pace(10, 1.0, 4.0), at_s)
    assert seen(window, 6.0).pace == Pace(30, 3.0, 12.0)
    window.roll(10.0)
    assert window.pace == Pace(10, 1.0, 4.0)
    window.roll(20.0)
    assert window.pace is None
