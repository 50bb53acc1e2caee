"""Migrations of a real engine that serves meanwhile, and what it refuses."""

from collections.abc import Iterator

import numpy as np
import pytest

from controller.elastic.arena import Arena
from controller.local_engine.local_engine import LocalEngine
from controller.migration.commands import (
    Agree,
    Command,
    Commit,
    Copy,
    Discard,
    Done,
    Drop,
    Refused,
    Stage,
    Verify,
)
from placer.memory.memfd import Memfd
from placer.placement import EMPTY, Placement
from placer.schedule import Round, Transfer
from tests.controller.local_engine.tiny_engine import (
    EXPERTS,
    LAYERS,
    MODEL,
    PROMPTS,
    a_placement,
    a_schedule,
    commands,
    generate,
    insist,
    migrate,
)

PAGE_BYTES = 3 * 128 * 64 * 4
# Linear, on 2 ranks with 10 slots each: rank 0 has experts 0 to 9, rank 1 has 10 to 15 and again
# 0 to 3, in slots 16 to 19.
LINEAR = np.tile(np.arange(20) % EXPERTS, (LAYERS, 1))


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(MODEL, 2, 20) as engine:
        yield engine


def changed(*cells: tuple[int, int, int]) -> Placement:
    """The linear placement with other experts in some slots: (layer, slot, expert)."""
    table = LINEAR.copy()
    for layer, slot, expert in cells:
        table[layer, slot] = expert
    return Placement(table, EXPERTS, 2)


def staged(engine: LocalEngine, *cells: tuple[int, int, int]) -> None:
    insist(engine, Stage(1, engine.placement, changed(*cells)))


def a_round(
    drops: tuple[tuple[int, int], ...] = (),
    copies: tuple[Transfer, ...] = (),
    commits: tuple[Transfer, ...] = (),
) -> Round:
    return Round(drops, copies, commits, 0.0)


def refusal(engine: LocalEngine, command: Command) -> str:
    """The reason; the map stays."""
    before = engine.placement.digest
    outcome = engine.carry_out(command)
    assert isinstance(outcome, Refused)
    assert engine.placement.digest == before
    return outcome.reason


FOURTH = Transfer(layer=2, expert=4, source=0, gpu=1, slot=16)  # over expert 0, which rank 0 has


def test_an_engine_starts_with_the_linear_placement(engine: LocalEngine) -> None:
    np.testing.assert_array_equal(engine.placement.physical_to_logical, LINEAR)
    assert (engine.placement.gpus, engine.placement.nodes) == (2, 1)
    assert (engine.shape.layers, engine.shape.experts, engine.shape.top_k) == (6, 16, 2)


def test_a_migration_is_not_seen_in_any_token(engine: LocalEngine) -> None:
    undisturbed = generate(engine, PROMPTS[:5], 200)
    requests = [engine.submit(prompt, 200) for prompt in PROMPTS[:5]]
    for request in requests:
        next(iter(request))
    for epoch in (1, 2):
        way = a_schedule(engine, a_placement(seed=epoch))
        assert len(way.rounds) > 1
        steps = engine.status.steps
        migrate(engine, way, epoch)
        assert engine.placement.digest == way.after.digest
        assert engine.status.steps > steps
    assert [request.tokens() for request in requests] == undisturbed
    assert engine.status.restarts == 0
    assert generate(engine, PROMPTS[:5], 40) == [tokens[:40] for tokens in undisturbed]


@pytest.mark.parametrize(("ranks", "slots", "scratch"), [(4, 20, 1), (4, 32, 2)])
def test_migrations_of_more_ranks(ranks: int, slots: int, scratch: int) -> None:
    with LocalEngine(MODEL, ranks, slots, scratch) as engine:
        before = generate(engine, PROMPTS[:3], 20)
        way = a_schedule(engine, a_placement(3, ranks, slots), scratch)
        migrate(engine, way)
        assert engine.placement.digest == way.after.digest
        assert generate(engine, PROMPTS[:3], 20) == before


def test_ranks_may_hold_different_numbers_of_experts() -> None:
    # Four experts of a layer on one rank, twelve on the other, and the rest of the slots empty.
    few, many = np.split(np.arange(EXPERTS), [4])
    table = np.full((LAYERS, 2, len(many)), EMPTY)
    for layer, ranks in enumerate(table):
        ranks[layer % 2, : len(few)] = few
        ranks[1 - layer % 2] = many
    uneven = Placement(table.reshape(LAYERS, -1), EXPERTS, gpus=2)
    with LocalEngine(MODEL, 2, uneven.slots) as engine:
        before = generate(engine, PROMPTS[:3], 20)
        migrate(engine, a_schedule(engine, uneven))
        assert (engine.placement.copies == uneven.copies).all()
        assert generate(engine, PROMPTS[:3], 20) == before


def test_every_command_may_come_twice(engine: LocalEngine) -> None:
    way = a_schedule(engine, a_placement(seed=5))
    copied = 0
    for command in commands(engine.placement, way):
        outcome = insist(engine, command)
        copied += outcome.copied_bytes
        placement = engine.placement.digest
        again = engine.carry_out(command)
        assert isinstance(again, Done)
        assert again.copied_bytes == 0
        assert engine.placement.digest == placement
    assert engine.placement.digest == way.after.digest
    between = [one for round in way.rounds for one in round.copies if one.source != one.gpu]
    assert copied == len(between) * PAGE_BYTES


def test_a_copy_serves_once_it_is_committed(engine: LocalEngine) -> None:
    staged(engine, (2, 16, 4))
    round = a_round(copies=(FOURTH,), commits=(FOURTH,))
    insist(engine, Copy(1, round))
    assert engine.placement.physical_to_logical[2, 16] == 0
    insist(engine, Commit(1, round))
    assert engine.placement.physical_to_logical[2, 16] == 4
    insist(engine, Verify(1, changed((2, 16, 4)).digest))


def test_a_dropped_slot_is_empty(engine: LocalEngine) -> None:
    outputs = generate(engine, PROMPTS[:3], 20)
    staged(engine, (2, 16, 4))
    insist(engine, Drop(1, a_round(drops=((2, 16), (0, 3)))))
    table = engine.placement.physical_to_logical
    assert (table[2, 16], table[0, 3]) == (EMPTY, EMPTY)
    assert generate(engine, PROMPTS[:3], 20) == outputs


def test_discarded_copies_leave_their_pages(engine: LocalEngine) -> None:
    over = [Transfer(layer, expert, 0, 1, expert + 12) for layer in range(6) for expert in (4, 5)]
    over.append(Transfer(0, 6, 0, 1, 18))
    staged(engine, (0, 16, 4))
    insist(engine, Copy(1, a_round(copies=tuple(over[:12]))))  # scratch for two in each layer
    assert "rank 1 has no free page of 72" in refusal(engine, Copy(1, a_round(copies=(over[12],))))
    insist(engine, Discard(1))
    insist(engine, Discard(1))
    assert "epoch 1 is not staged (nothing is)" in refusal(engine, Agree(1))
    staged(engine, (0, 16, 4))
    assert "is not in slot 16" in refusal(engine, Commit(1, a_round(commits=(over[0],))))
    insist(engine, Copy(1, a_round(copies=tuple(over[1:]))))


def test_staging_another_epoch_forgets_the_last(engine: LocalEngine) -> None:
    round = a_round(copies=(FOURTH,), commits=(FOURTH,))
    staged(engine, (2, 16, 4))
    insist(engine, Copy(1, round))
    insist(engine, Stage(2, engine.placement, changed((2, 16, 5))))
    assert "epoch 1 is not staged (2 is)" in refusal(engine, Commit(1, round))
    assert "is not in slot 16" in refusal(engine, Commit(2, round))
    insist(engine, Agree(2))


def test_an_engine_without_scratch_fills_empty_slots_only() -> None:
    round = a_round(((2, 16),), (FOURTH,), (FOURTH,))
    with LocalEngine(MODEL, 2, 20, scratch=0) as engine:
        staged(engine, (2, 16, 4))
        assert "no free page" in refusal(engine, Copy(1, round))
        for command in (Drop(1, round), Copy(1, round), Commit(1, round)):
            insist(engine, command)
        insist(engine, Verify(1, changed((2, 16, 4)).digest))


def test_what_may_not_be_staged_is_refused(engine: LocalEngine) -> None:
    now, other = engine.placement, changed((2, 16, 4))
    assert "plan from its map" in refusal(engine, Stage(1, other, now))
    smaller = Placement(LINEAR[:, :16], EXPERTS, 2)
    assert "6 layers x 16 slots" in refusal(engine, Stage(1, now, smaller))
    assert "no slot holds expert 7" in refusal(engine, Stage(1, now, changed((1, 7, 0))))
    assert "number changes from 1" in refusal(engine, Stage(0, now, other))
    assert "nothing is" in refusal(engine, Agree(1))


def test_no_command_takes_the_last_slot_of_an_expert(engine: LocalEngine) -> None:
    staged(engine, (2, 16, 4))
    assert "layer 0 would lose expert 5" in refusal(engine, Drop(1, a_round(drops=((0, 5),))))
    both = a_round(drops=((3, 0), (3, 16)))
    assert "layer 3 would lose expert 0" in refusal(engine, Drop(1, both))
    over_its_last = Transfer(layer=2, expert=4, source=0, gpu=1, slot=10)
    round = a_round(copies=(over_its_last,), commits=(over_its_last,))
    insist(engine, Copy(1, round))
    assert "layer 2 would lose expert 10" in refusal(engine, Commit(1, round))


@pytest.mark.parametrize(
    ("copy", "reason"),
    [
        (Transfer(2, 4, 1, 1, 17), "rank 1 does not serve it"),
        (Transfer(2, 4, 0, 0, 16), "another rank's"),
        (Transfer(2, 4, 0, 1, 20), "layer 2 slot 20 is not one of"),
        (Transfer(6, 4, 0, 1, 16), "layer 6 slot 16 is not one of"),
        (Transfer(2, 5, 0, 1, 16), "goes where expert 4 waits"),
    ],
)
def test_copies_that_cannot_be_are_refused(
    engine: LocalEngine, copy: Transfer, reason: str
) -> None:
    staged(engine, (2, 16, 4))
    insist(engine, Copy(1, a_round(copies=(FOURTH,))))
    assert reason in refusal(engine, Copy(1, a_round(copies=(copy,))))


def test_what_was_not_copied_is_not_committed(engine: LocalEngine) -> None:
    staged(engine, (2, 16, 4), (2, 17, 5))
    fifth = Transfer(2, 5, 0, 1, 17)
    insist(engine, Copy(1, a_round(copies=(FOURTH,))))
    both = a_round(commits=(FOURTH, fifth))
    assert "expert 5 of layer 2 from rank 0 is not in slot 17" in refusal(engine, Commit(1, both))
    assert engine.placement.digest == changed().digest


def test_weights_that_changed_are_noticed(engine: LocalEngine) -> None:
    staged(engine, (2, 16, 4))
    insist(engine, Verify(1, changed().digest))
    with engine.devices.descriptor(0) as descriptor:
        arena = Arena(Memfd(), engine.devices.layout, descriptor)
        arena.page(2 * 10 + 4)[77] += 1
        arena.close()
    reason = refusal(engine, Verify(1, changed().digest))
    assert reason == "layer 2: page 24 of rank 0 does not hold expert 4's weights"
    assert "is not what was loaded" in refusal(engine, Copy(1, a_round(copies=(FOURTH,))))


def test_another_map_is_not_verified(engine: LocalEngine) -> None:
    staged(engine, (2, 16, 4))
    assert changed((2, 16, 4)).digest in refusal(engine, Verify(1, changed((2, 16, 4)).digest))
