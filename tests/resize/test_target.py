"""Which placement a new width gets: 16 experts on 3 GPUs, and the fewest copies that there are."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.objective import Objective
from placer.placement import EMPTY, Placement, linear
from placer.plan import Infeasible
from placer.problem import Problem
from placer.repair import refit
from placer.resize import Devices, Kind, Speeds, Target, resize_to
from placer.resize.naming import carried
from placer.topology import Link
from tests.builders import a_model, by_hand, loads
from tests.resize.worlds import DOWN, UP, a_map, an_engine, found, maps

US = 1e-6
DEFAULT = Speeds()
NEAR = 1e-3  # what tokens take on the links


THREE = Devices(by_hand(3), (0, 1), (0, 1, 2))
EIGHT_EACH = linear(1, 16, 16, 2)


def sixteen(slots: int = 18) -> Problem:
    """Three tokens of each expert in a step of 48, a microsecond each; 60 s of such steps."""
    hardware = replace(by_hand(3), local=Link(1e12, 0.0))
    model = a_model(layers=1, experts=16)
    return Problem(model, hardware, loads([[1e12] * 16]), slots, Objective(tokens_per_gpu=16))


def went(page_bytes: int, others: Sequence[Placement] = (), speeds: Speeds = DEFAULT) -> Target:
    problem = sixteen()
    engine = an_engine(expert_bytes=page_bytes, dense_bytes=0, capacity=10**15, speeds=speeds)
    devices = replace(THREE, hardware=problem.topology)
    found = resize_to(problem, EIGHT_EACH, devices, engine, others=others)
    assert isinstance(found, Target)
    return found


def test_experts_that_do_not_divide_get_replicas_where_copies_are_cheap() -> None:
    """16 experts on 3 GPUs need 18 slots. The new GPU gets 4 experts, and a replica of one of each
    old GPU, which then serve 5 experts and a half: 16.5 us. Six copies of 2 ms."""
    found = went(page_bytes=10**9)
    assert found.resize.after.empty == 0
    assert found.step_s == pytest.approx(16.5 * US, rel=NEAR)
    assert found.resize.experts.count(Kind.COPY) == 6
    assert found.resize.seconds.transfer == pytest.approx(6 * 0.002)


def test_where_copies_are_dear_the_slots_that_are_left_over_stay_empty() -> None:
    """A page takes 8 s. Four of them and 60 s of steps of 18 us (the GPUs with 6 experts) are 92 s;
    six and as many steps of 16.5 us would be 48 + 55 s."""
    found = went(page_bytes=4 * 10**12)
    assert found.resize.after.empty == 2
    assert found.step_s == pytest.approx(18 * US, rel=NEAR)
    assert found.resize.experts.count(Kind.COPY) == 4
    assert found.resize.seconds.transfer == pytest.approx(4 * 8)


def test_a_target_that_the_caller_knows_is_taken_if_its_steps_are_worth_it() -> None:
    """One expert on all three GPUs: each serves 5 experts and a third. Its seventh copy goes to an
    old GPU."""
    best = a_map([[[*range(5), 15], [*range(5, 10), 15], [*range(10, 15), 15]]], experts=16)
    found = went(10**9, others=[best])
    assert found.step_s == pytest.approx(16 * US, rel=NEAR)
    assert found.resize.experts.count(Kind.COPY) == 7
    assert went(4 * 10**12, others=[best]).resize.after.empty == 2
    # It takes 1.7 s less; of 255 s that is no hundredth.
    long = went(10**9, others=[best], speeds=Speeds(switch_s=200))
    assert long.resize.experts.count(Kind.COPY) == 6
    # As fast as six copies allow, and it moves nearly all: not worth it.
    mixed = a_map([[[0, 3, 6, 9, 12, 15], [1, 4, 7, 10, 13, 0], [2, 5, 8, 11, 14, 1]]], experts=16)
    assert went(10**9, others=[mixed]).resize.experts.count(Kind.COPY) == 6


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (sixteen(slots=51), "17 slots a GPU clash with 16 experts"),
        (
            replace(sixteen(), model=replace(a_model(1, 16), other_bytes=8000)),
            "use at least 4 GPUs",
        ),
    ],
)
def test_limits_that_clash_are_infeasible_with_what_would_do(problem: Problem, reason: str) -> None:
    found = resize_to(problem, EIGHT_EACH, THREE, an_engine())
    assert isinstance(found, Infeasible)
    assert reason in found.reason


def test_a_width_whose_every_target_is_too_large_is_infeasible() -> None:
    engine = an_engine(expert_bytes=192, dense_bytes=0, capacity=8 * 192 - 1)
    found = resize_to(sixteen(), EIGHT_EACH, THREE, engine)
    assert isinstance(found, Infeasible)
    assert "at the switch" in found.reason


def fewest(before: Placement, devices: Devices, size: int, fill: bool) -> int:
    """Copies that the best of all targets needs, in one layer of four experts."""
    table = before.physical_to_logical.reshape(before.gpus, -1)
    held = {device: table[rank] for rank, device in enumerate(devices.before)}
    choices = []
    for device in devices.after:
        had = [expert for expert in held.get(device, []) if expert != EMPTY]
        least = size if fill else min(size, len(had))
        contents = [
            set(one) for count in range(least, size + 1) for one in combinations(range(4), count)
        ]
        choices.append([(one, len(one - set(had))) for one in contents])
    return min(
        sum(copies for _, copies in way)
        for way in product(*choices)
        if len(set().union(*(content for content, _ in way))) == 4
    )


@given(
    st.sampled_from([(UP, maps(2, layers=1)), (DOWN, maps(3, layers=1))]).flatmap(
        lambda one: st.tuples(st.just(one[0]), one[1])
    ),
    st.integers(2, 3),
    st.booleans(),
)
def test_no_target_needs_fewer_copies_than_the_one_that_keeps_what_fits(
    change: tuple[Devices, Placement], size: int, fill: bool
) -> None:
    devices, before = change
    gpus = len(devices.after)
    problem = Problem(a_model(layers=1), by_hand(gpus), loads([[4, 3, 2, 1]]), size * gpus)
    running = carried(before, devices, 1, before.slots_per_gpu)
    target = refit(problem, running, fill)
    assert not target.lost
    assert not fill or not target.empty
    copied = found(before, target, devices).experts.count(Kind.COPY)
    assert copied == fewest(before, devices, size, fill)
