import pytest

from placer.agent.stopwatch import Stopwatch
from placer.pace import Pace


def stepped(*steps: tuple[float, float, str, list[str]]) -> Stopwatch:
    """When each began and was handed over, its phase and its requests."""
    watch = Stopwatch()
    for begun_s, ended_s, phase, requests in steps:
        watch.begin(begun_s, requests)
        watch.end(begun_s, ended_s, phase, requests)
    return watch


def test_while_a_request_goes_on_a_step_lasts_until_the_next() -> None:
    """Whatever the thread does: here it hands a step of 4 s over within 1 s."""
    watch = stepped((0, 1, "prefill", ["a"]), (4, 5, "decode", ["b", "a"]), (6, 7, "decode", ["b"]))
    assert watch.take(10.0) == {"prefill": Pace(1, 4, 10), "decode": Pace(1, 2, 10)}


def test_the_last_before_a_pause_lasts_until_its_own_end() -> None:
    watch = stepped((0, 1, "decode", ["a"]), (60, 61, "decode", ["b"]))
    assert watch.take(61.0)["decode"] == Pace(1, 1, 61)


def test_a_step_without_tokens_ends_the_one_before() -> None:
    watch = stepped((0, 1, "decode", ["a"]))
    watch.begin(5, [])
    assert watch.take(5.0)["decode"] == Pace(1, 1, 5)


def test_every_step_is_counted_once_over_all_recordings() -> None:
    watch = stepped((0, 1, "decode", ["a"]))
    assert watch.take(1.0)["decode"] == Pace(0, 0, 1)
    watch.begin(2, ["a"])
    assert watch.take(1.0)["decode"] == Pace(1, 2, 1)
    assert watch.take(1.0)["decode"] == Pace(0, 0, 1)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_in_no_time_nothing_is_lost(phase: str) -> None:
    watch = Stopwatch()
    watch.count(phase, 0.5)
    assert watch.take(0.0) == {}
    assert watch.take(2.0)[phase] == Pace(1, 0.5, 2)
