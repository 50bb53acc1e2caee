from typing import Any

import pytest

from placer.errors import RoutingError
from placer.pace import Pace, elapsed, merged, of_meta


def test_rates() -> None:
    pace = Pace(steps=20, busy_s=5.0, window_s=10.0)
    assert (pace.step_s, pace.busy) == (0.25, 0.5)
    assert (Pace(0, 0.0, 10.0).step_s, Pace(0, 0.0, 10.0).busy) == (None, 0.0)


def test_a_step_that_began_in_the_window_before_makes_no_engine_busier_than_always() -> None:
    assert Pace(1, 2.0, 1.0).busy == 1.0


def test_workers_add_up_and_their_mean_stays() -> None:
    both = merged([("decode", Pace(20, 5.0, 10.0)), ("decode", Pace(10, 1.0, 10.0))])
    assert both == Pace(30, 6.0, 20.0)


def test_phases_share_their_time() -> None:
    """Two workers, 10 s each, in which each had steps of both phases."""
    paces = [(phase, Pace(5, 1.0, 10.0)) for phase in ("prefill", "decode")] * 2
    assert merged(paces) == Pace(20, 4.0, 20.0)


def test_those_that_measured_stand_for_those_that_did_not() -> None:
    assert merged([("decode", None), ("decode", Pace(2, 1.0, 4.0))]) == Pace(2, 1.0, 4.0)
    assert merged([("decode", None)]) is None
    assert merged([]) is None


def test_seconds_are_known_if_all_are() -> None:
    assert elapsed([("decode", 2.0), ("prefill", 3.0), ("decode", 2.0)]) == 4.0
    assert elapsed([("decode", 2.0), ("prefill", None)]) is None


@pytest.mark.parametrize(
    "sums", [(-1, 0, 1), (1, -1, 1), (1, 1, 0), (1, float("inf"), 1), (1, float("nan"), 1)]
)
def test_sums_that_cannot_be_are_refused(sums: tuple[int, float, float]) -> None:
    with pytest.raises(RoutingError, match="record again"):
        Pace(*sums)


@pytest.mark.parametrize(
    "said",
    [
        5,
        [],
        {},
        {"steps": 1},
        {"steps": 1, "busy_s": "1", "window_s": 2},
        {"steps": 10**400, "busy_s": 1, "window_s": 2},
        {"steps": 0.5, "busy_s": 1, "window_s": 2},
        {"steps": 1, "busy_s": float("nan"), "window_s": 2},
        {"steps": True, "busy_s": 1, "window_s": 2},
    ],
)
def test_what_a_file_says_is_checked(said: Any) -> None:
    assert of_meta({}) is None
    with pytest.raises(RoutingError, match="meta has pace"):
        of_meta({"pace": said})
