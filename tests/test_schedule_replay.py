"""The replay finds what is wrong in schedules that were tampered with."""

from dataclasses import replace

from placer.placement import Placement
from placer.schedule import Budget, MigrationSchedule, Round, Transfer, faults
from tests.builders import a_placement

BYTES = 100
BUDGET = Budget(BYTES, BYTES, scratch_slots=1)
BEFORE = a_placement([[0, 1, 2, 3]], nodes=2)
AFTER = a_placement([[2, 1, 0, 3]], nodes=2)
THERE, BACK = Transfer(0, 0, 0, 1, 2), Transfer(0, 2, 1, 0, 0)
SWAP = Round((), (THERE, BACK), (THERE, BACK), 1.0)


def found(
    *rounds: Round, before: Placement = BEFORE, after: Placement = AFTER, budget: Budget = BUDGET
) -> list[str]:
    return faults(MigrationSchedule(rounds, after), before, after, BYTES, budget)


def test_a_sound_schedule_passes() -> None:
    assert found(SWAP) == []


def test_a_copy_may_wait_in_scratch_memory() -> None:
    first = Round((), (THERE,), (), 1.0)
    assert found(first, Round((), (BACK,), (BACK, THERE), 1.0)) == []


def test_an_expert_is_lost_when_its_slot_is_taken_before_its_copy_serves() -> None:
    hasty = Round((), (THERE, BACK), (BACK,), 1.0)
    assert found(hasty, Round((), (), (THERE,), 0.0)) == ["round 0: layer 0 loses expert 0"]


def test_an_expert_is_lost_when_its_only_slot_is_dropped() -> None:
    dropped = replace(SWAP, drops=((0, 0),))
    assert "round 0: layer 0 loses expert 0" in found(dropped)


def test_a_source_must_hold_what_it_sends() -> None:
    wrong = replace(THERE, expert=3)
    assert found(Round((), (wrong,), (), 1.0))[0].endswith("comes from a GPU without this expert")


def test_a_copy_must_go_to_a_slot_of_its_gpu() -> None:
    wrong = replace(THERE, slot=1)
    assert found(Round((), (wrong,), (), 1.0))[0].endswith("goes to a slot of another GPU")


def test_two_copies_cannot_go_to_one_slot() -> None:
    other = replace(THERE, expert=1)
    sentences = found(Round((), (THERE, other), (), 1.0), budget=Budget(200, scratch_slots=2))
    assert sentences[0].endswith("goes where another copy is going")


def test_a_copy_cannot_serve_before_it_is_made() -> None:
    assert "is committed but not there" in found(Round((), (BACK,), (THERE,), 1.0))[0]


def test_ranks_nodes_and_scratch_memory_keep_to_the_budget() -> None:
    also = Transfer(0, 1, 0, 1, 3)
    assert found(Round((), (THERE, also), (), 1.0))[:5] == [
        "round 0: rank 0 out, network: 200 bytes in flight, 100 allowed",
        "round 0: rank 1 in, network: 200 bytes in flight, 100 allowed",
        "round 0: node 0 out: 200 bytes in flight, 100 allowed",
        "round 0: node 1 in: 200 bytes in flight, 100 allowed",
        "round 0: GPU 1 holds 2 experts beside its slots, 1 allowed",
    ]


def test_a_copy_into_an_empty_slot_needs_no_scratch_memory() -> None:
    before = a_placement([[0, 1, -1, -1]], experts=2)
    after = a_placement([[0, 1, 0, -1]], experts=2)
    copy = Transfer(0, 0, 0, 1, 2)
    budget = Budget(BYTES, scratch_slots=0)
    assert found(Round((), (copy,), (copy,), 1.0), before=before, after=after, budget=budget) == []


def test_every_copy_must_serve_in_the_end() -> None:
    assert found(Round((), (THERE,), (), 1.0))[0] == "1 copies are never committed"


def test_the_schedule_must_end_where_it_says_and_where_it_should() -> None:
    assert found() == [
        "the schedule does not end in the slots that it says",
        "some GPU does not end with the experts that it should have",
    ]
    elsewhere = a_placement([[1, 2, 0, 3]], nodes=2)
    assert found(SWAP, after=elsewhere) == ["the schedule does not end in the slots that it says"]


def test_a_schedule_with_a_reason_must_leave_everything_as_it_is() -> None:
    assert (
        faults(MigrationSchedule((), BEFORE, reason="frozen"), BEFORE, AFTER, BYTES, BUDGET) == []
    )
    moved = faults(MigrationSchedule((SWAP,), AFTER, reason="frozen"), BEFORE, AFTER, BYTES, BUDGET)
    assert moved == ["some GPU does not end with the experts that it should have"]
