from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.schedule import both_ways_s, evenly_shared, first_fit_s
from placer.cost.moves import arrivals
from placer.errors import PlacementError
from placer.placement import Placement
from placer.schedule import (
    Budget,
    MigrationSchedule,
    Round,
    Transfer,
    faults,
    match_slots,
    schedule,
)
from placer.schedule.copies import fewest_each
from tests.builders import a_placement, a_topology

BYTES = 450
LOCAL_S, NETWORK_S = BYTES / 450e9, BYTES / 50e9  # h100
ONE = Budget(BYTES)


def scheduled(before: Placement, after: Placement, budget: Budget = ONE) -> MigrationSchedule:
    """The schedule on H100s, replayed."""
    topology = a_topology(before.gpus, before.nodes)
    found = schedule(before, after, BYTES, topology, budget)
    assert faults(found, before, after, BYTES, budget) == []
    return found


def sources(found: MigrationSchedule) -> list[tuple[int, int]]:
    """(expert, source) of every copy."""
    return sorted((copy.expert, copy.source) for turn in found.rounds for copy in turn.copies)


@st.composite
def changes(draw: st.DrawFn, empty: bool = False) -> tuple[Placement, Placement]:
    """Any two placements of the same experts: replicas and duplicates anywhere, empty slots."""
    nodes, per_node = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    gpus = max(nodes * per_node, 2)
    nodes = nodes if gpus % nodes == 0 else 1
    slots = gpus * draw(st.integers(1, 4))
    experts, layers = draw(st.integers(1, slots)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    lowest = -1 if empty else 0
    rows = [
        [
            rng.permutation(np.r_[:experts, rng.integers(lowest, experts, slots - experts)])
            for _ in range(layers)
        ]
        for _ in range(2)
    ]
    before, after = (Placement(np.array(layers), experts, gpus, nodes) for layers in rows)
    return before, after


# What goes where


def test_two_experts_that_change_places_are_committed_together() -> None:
    before, after = a_placement([[0, 1]], experts=2), a_placement([[1, 0]], experts=2)
    found = scheduled(before, after)
    there, back = Transfer(0, 0, 0, 1, 1), Transfer(0, 1, 1, 0, 0)
    assert found.rounds == (Round((), (there, back), (there, back), LOCAL_S),)
    assert found.makespan_s == found.lower_bound_s == LOCAL_S


def test_reordering_inside_a_gpu_moves_nothing() -> None:
    before, after = a_placement([[0, 1, 2, 3]]), a_placement([[1, 0, 3, 2]])
    found = scheduled(before, after)
    assert found.rounds == ()
    assert found.after.digest == before.digest


def test_a_copy_takes_any_slot_of_its_gpu_that_is_given_up() -> None:
    before, after = a_placement([[0, 1, 2, 3]]), a_placement([[2, 1, 0, 3]])
    backwards = a_placement([[1, 2, 3, 0]])
    assert scheduled(before, after).after.digest == scheduled(before, backwards).after.digest


def test_a_copy_comes_from_its_own_node_where_it_can() -> None:
    before = a_placement([[0, 1, 0, 1]], experts=2, gpus=4, nodes=2)
    after = a_placement([[0, 1, 0, 0]], experts=2, gpus=4, nodes=2)
    found = scheduled(before, after)
    assert sources(found) == [(0, 2)]
    assert found.makespan_s == LOCAL_S


def test_holders_share_the_sending() -> None:
    # Expert 0 goes from GPUs 0 and 1 to GPUs 2 and 3: one copy each, at the same time.
    before = a_placement([[0, 0, 1, 1]], experts=2, gpus=4)
    after = a_placement([[0, 1, 0, 0]], experts=2, gpus=4)
    found = scheduled(before, after)
    assert [source for expert, source in sources(found) if expert == 0] == [0, 1]
    assert found.makespan_s == LOCAL_S


def test_a_second_copy_on_a_gpu_is_made_there_at_the_end() -> None:
    before = a_placement([[0, 1, 1, 0]], experts=2)
    after = a_placement([[0, 0, 1, 1]], experts=2)
    found = scheduled(before, after)
    assert sources(found) == [(0, 0), (1, 1)]
    assert found.makespan_s == 0


def test_an_empty_slot_needs_no_scratch_memory() -> None:
    before, after = a_placement([[0, -1, 1, -1]], 2), a_placement([[0, 1, 1, 0]], 2)
    assert scheduled(before, after, Budget(BYTES, scratch_slots=0)).makespan_s == LOCAL_S


def test_a_slot_that_is_to_be_empty_is_dropped_last() -> None:
    before, after = a_placement([[0, 1, 0, 1]], 2), a_placement([[0, -1, -1, 1]], 2)
    assert scheduled(before, after).rounds == (Round(((0, 1), (0, 2)), (), (), 0.0),)


# Budgets


def test_a_rank_sends_one_copy_after_the_other_when_the_budget_holds_one() -> None:
    # GPU 0 exchanges expert 0 for 2 and expert 1 for 4.
    before = a_placement([[0, 1, 2, 3, 4, 5]], experts=6, gpus=3)
    after = a_placement([[2, 4, 0, 3, 1, 5]], experts=6, gpus=3)
    one, two = scheduled(before, after), scheduled(before, after, Budget(2 * BYTES))
    assert [len(turn.copies) for turn in one.rounds] == [2, 2]
    assert [len(turn.copies) for turn in two.rounds] == [4]
    assert one.makespan_s == two.makespan_s == 2 * LOCAL_S


def test_local_links_and_the_network_work_at_the_same_time() -> None:
    # GPU 0 exchanges expert 0 with the other node and expert 1 inside its own.
    before = a_placement([[0, 1, 2, 3, 4, 5, 6, 7]], experts=8, gpus=4, nodes=2)
    after = a_placement([[4, 2, 1, 3, 0, 5, 6, 7]], experts=8, gpus=4, nodes=2)
    found = scheduled(before, after)
    assert [len(turn.copies) for turn in found.rounds] == [4]
    assert found.makespan_s == NETWORK_S


def test_a_node_sends_no_more_at_a_time_than_its_budget() -> None:
    before = a_placement([[0, 1, 2, 3]], gpus=4, nodes=2)
    after = a_placement([[2, 3, 0, 1]], gpus=4, nodes=2)
    free, tight = scheduled(before, after), scheduled(before, after, Budget(BYTES, BYTES))
    assert (free.makespan_s, tight.makespan_s) == (NETWORK_S, 2 * NETWORK_S)
    assert tight.lower_bound_s == 2 * NETWORK_S


@pytest.mark.parametrize("budget", [Budget(0), Budget(BYTES, 0)])
def test_zero_bytes_freeze(budget: Budget) -> None:
    before = a_placement([[0, 1]], experts=2, nodes=2)
    after = a_placement([[1, 0]], experts=2, nodes=2)
    found = scheduled(before, after, budget)
    assert (found.rounds, found.pending) == ((), 2)
    assert found.reason.endswith("bytes is 0: frozen, 2 copies wait")
    assert found.after.digest == before.digest


def test_a_frozen_network_does_not_freeze_a_node() -> None:
    before = a_placement([[0, 1, 2, 3]], gpus=4, nodes=2)
    after = a_placement([[1, 0, 2, 3]], gpus=4, nodes=2)
    assert scheduled(before, after, Budget(BYTES, node_bytes=0)).copies == 2


def test_a_budget_below_one_expert_says_so() -> None:
    before, after = a_placement([[0, 1]], experts=2), a_placement([[1, 0]], experts=2)
    found = scheduled(before, after, Budget(BYTES - 1))
    assert found.reason == "rank_bytes is 449 but an expert has 450 bytes: allow as many"


def test_without_scratch_memory_experts_cannot_change_places() -> None:
    before, after = a_placement([[0, 1]], experts=2), a_placement([[1, 0]], experts=2)
    found = scheduled(before, after, Budget(BYTES, scratch_slots=0))
    assert found.pending == 2
    assert found.reason.startswith("scratch_slots is 0 but 2 copies need room")


def test_without_scratch_memory_a_spare_replica_makes_room() -> None:
    before = a_placement([[0, 1, 1, 2]], experts=3)
    after = a_placement([[0, 2, 1, 2]], experts=3)
    found = scheduled(before, after, Budget(BYTES, scratch_slots=0))
    assert found.rounds[0].drops == ((0, 1),)
    assert found.pending == 0


def test_a_negative_budget_is_refused() -> None:
    with pytest.raises(PlacementError, match="rank_bytes is -1: it must be 0 or more"):
        Budget(-1)


# What cannot be scheduled


def test_a_change_that_loses_an_expert_is_refused() -> None:
    whole, lossy = a_placement([[0, 1]], experts=2), a_placement([[0, 0]], experts=2)
    with pytest.raises(PlacementError, match="layer 0 has no expert 1 after the change"):
        scheduled(whole, lossy)
    with pytest.raises(PlacementError, match="layer 0 has no expert 1 before the change"):
        scheduled(lossy, whole)


def test_another_topology_is_refused() -> None:
    placement = a_placement([[0, 1]], experts=2)
    with pytest.raises(PlacementError, match="for 2 GPUs in 1 nodes but h100 has 4 in 1"):
        schedule(placement, placement, BYTES, a_topology(4), ONE)


# Any change


@given(
    changes(empty=True),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 5)),
    st.integers(1, 5),
)
def test_every_change_is_brought_about_within_its_budget_and_loses_no_expert(
    change: tuple[Placement, Placement], experts: int, of_node: int | None, scratch: int
) -> None:
    budget = Budget(experts * BYTES, None if of_node is None else of_node * BYTES, scratch)
    found = scheduled(*change, budget)
    assert not found.reason
    assert found.makespan_s >= found.lower_bound_s * (1 - 1e-12)


@given(changes(empty=True))
def test_without_scratch_memory_a_change_is_brought_about_or_left_alone(
    change: tuple[Placement, Placement],
) -> None:
    found = scheduled(*change, Budget(BYTES, scratch_slots=0))
    assert not found.reason or not found.rounds


@given(changes(empty=True))
def test_with_scratch_memory_enough_no_schedule_is_faster(
    change: tuple[Placement, Placement],
) -> None:
    found = scheduled(*change, Budget(BYTES, scratch_slots=100))
    assert found.makespan_s == pytest.approx(found.lower_bound_s)


@given(changes(empty=True))
def test_only_what_arrives_is_copied_between_gpus(change: tuple[Placement, Placement]) -> None:
    before, after = change
    found = scheduled(before, after)
    between = [copy for turn in found.rounds for copy in turn.copies if copy.source != copy.gpu]
    new = (after.copies > 0) & (before.copies == 0)
    assert len(between) == new.sum() <= arrivals(before, after).sum()


@given(changes())
def test_first_fit_batching_inside_a_node_is_never_faster(
    change: tuple[Placement, Placement],
) -> None:
    before, after = (replace(placement, nodes=1) for placement in change)
    found = scheduled(before, after, Budget(BYTES, scratch_slots=100))
    batched_s = first_fit_s(evenly_shared(before, after), BYTES, a_topology(before.gpus))
    assert found.makespan_s <= batched_s * (1 + 1e-12)


@given(changes())
def test_the_same_change_gives_the_same_schedule(change: tuple[Placement, Placement]) -> None:
    assert scheduled(*change).rounds == scheduled(*change).rounds


@given(changes(empty=True), st.integers(0, 2**16))
def test_its_rounds_serve_gpus_that_hold_the_same_in_other_slots(
    change: tuple[Placement, Placement], seed: int
) -> None:
    before, after = change
    table = before.physical_to_logical.reshape(before.layers, before.gpus, -1)
    other = np.random.default_rng(seed).permuted(table, axis=2).reshape(before.layers, -1)
    stands = replace(before, physical_to_logical=other)
    assert stands.is_like(before)
    found = scheduled(before, after).renamed(before, stands)
    assert faults(found, stands, after, BYTES, ONE) == []


def test_a_large_change_takes_as_long_as_its_busiest_rank() -> None:
    rng = np.random.default_rng(0)
    rows = [[rng.permutation(np.r_[:64, :8]) for _ in range(12)] for _ in range(2)]
    before, after = (Placement(np.array(layers), 64, 8, 2) for layers in rows)
    after = match_slots(before, after, "layers")
    found = scheduled(before, after, Budget(BYTES, scratch_slots=4))
    copies = evenly_shared(before, after)
    topology = a_topology(8, 2)
    assert found.makespan_s == pytest.approx(found.lower_bound_s, rel=0.05)
    assert found.makespan_s < both_ways_s(copies, BYTES, topology) / 1.05
    assert found.makespan_s < first_fit_s(copies, BYTES, topology) / 2


@given(st.integers(1, 5), st.integers(2, 4), st.integers(0, 2**16))
def test_the_busiest_source_sends_as_few_copies_as_possible(
    items: int, bins: int, seed: int
) -> None:
    candidates = np.random.default_rng(seed).random((items, bins)) < 0.5
    candidates[:, 0] |= ~candidates.any(axis=1)
    for begun in (np.zeros(bins, dtype=int), np.arange(bins)):
        chosen = fewest_each(candidates, np.zeros(bins, dtype=int), begun)
        assert candidates[range(items), chosen].all()
        choices = product(*(np.nonzero(row)[0] for row in candidates))
        best = min((np.bincount(choice, minlength=bins) + begun).max() for choice in choices)
        assert (np.bincount(chosen, minlength=bins) + begun).max() == best
