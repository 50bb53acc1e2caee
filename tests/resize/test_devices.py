import pytest

from placer.errors import PlacementError
from placer.plan import Infeasible
from placer.resize import Devices, resized
from tests.builders import a_topology

EIGHT = a_topology(8)


def after(*args: object, **more: object) -> tuple[int, ...]:
    found = resized(EIGHT, *args, **more)  # type: ignore[arg-type]
    assert isinstance(found, Devices)
    return found.after


def test_growing_takes_the_lowest_free_devices_and_shrinking_gives_the_last_back() -> None:
    assert after((0, 1, 4), 5) == (0, 1, 4, 2, 3)
    assert after((0, 1, 4), 2) == (0, 1)
    assert after((0, 1, 4), 3) == (0, 1, 4)


def test_any_ranks_can_be_retired_and_what_is_dead_is_not_used_again() -> None:
    assert after((0, 1, 2, 3), 3, retired=[1]) == (0, 2, 3)
    assert after((0, 1, 2, 3), 2, retired=[1]) == (0, 2)
    assert after((0, 1, 2, 3), 4, dead=[1]) == (0, 2, 3, 4)
    assert after((0, 1), 2, retired=[0]) == (1, 2)


def test_tensor_parallel_groups_stay_whole() -> None:
    assert after((0, 1, 2, 3), 6, tp=2) == (0, 1, 2, 3, 4, 5)
    assert after((0, 1, 2, 3), 2, tp=2, dead=[1]) == (2, 3)
    assert after((0, 1, 2, 3), 4, tp=2, dead=[1]) == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("width", "more", "reason"),
    [
        (9, {}, "9 ranks need more devices than the 8 of h100 have for them: use 1 to 8"),
        (8, {"dead": [1]}, "have for them, 1 retired or dead: use 1 to 7"),
        (1, {"smallest": 2}, "1 ranks are fewer than the engine's smallest width of 2: use 2 to 8"),
        (0, {}, "0 ranks are fewer than the engine's smallest width of 1: use 1 to 8"),
        (3, {"tp": 2}, "groups of tp 2, which never changes: use multiples of 2 in 2..8"),
        (2, {"smallest": 9}, "its smallest width is 9: free more devices"),
    ],
)
def test_a_width_that_cannot_be_is_infeasible_with_those_that_can(
    width: int, more: dict[str, int], reason: str
) -> None:
    found = resized(EIGHT, (0, 1), width, **more)  # type: ignore[arg-type]
    assert isinstance(found, Infeasible)
    assert found.reason.endswith(reason)


@pytest.mark.parametrize(
    ("at", "more", "fault"),
    [
        (((0, 8), (0,)), {}, "device 8 is outside 0..7"),
        (((0, 0), (0,)), {}, "give each once"),
        (((0,), ()), {}, "give each once"),
        (((0, 1), (0, 1)), {"dead": frozenset({1})}, "device 1 is dead"),
        (((0, 1), (0,)), {"tp": 2}, "do not divide into groups of tp 2"),
        (((0, 1, 2, 3), (1, 2)), {"tp": 2}, "were not one tensor-parallel group"),
        (((0, 1), (1, 0)), {"tp": 2}, "were not one tensor-parallel group"),
    ],
)
def test_devices_that_cannot_be_are_an_error(
    at: tuple[tuple[int, ...], tuple[int, ...]], more: dict[str, int], fault: str
) -> None:
    with pytest.raises(PlacementError, match=fault):
        Devices(EIGHT, *at, **more)  # type: ignore[arg-type]
