"""Ranks agree on a plan, or keep their map. The others' votes are given; real groups have their
own tests."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-vllm installs it")

from placer.agent.vllm.applying import Applying, Vote
from placer.agent.vllm.verdict import Verdict
from placer.clock import SystemClock
from placer.placement import Placement
from placer.plan import Plan
from placer.worker import Worker

# One layer, 2 ranks of 2 slots.
OLD = torch.tensor([[0, 1, 2, 3]])
NEW = Plan(Placement(np.array([[0, 2, 1, 3]]), experts=4, gpus=2))
OTHER = Plan(Placement(np.array([[3, 2, 1, 0]]), experts=4, gpus=2))
WORKER = Worker("worker-0", "m", 1, 4, 1, 4, ep_rank=0, ep_size=2, can_apply=True, records=True)


class Engines:
    """The engine's own policy, for when no plan can have the answer."""

    def rebalance_experts(self, weight: object, num_replicas: int, *_: object) -> object:
        return f"the engine's map of {num_replicas} slots"


class Group:
    """This rank's, which is the first of two; how all vote follows from its own vote."""

    rank, size = 0, 2

    def __init__(self, votes: Callable[[Vote], list[Vote]]) -> None:
        self.votes, self.store = votes, torch.distributed.HashStore()


def a_rank(votes: Callable[[Vote], list[Vote]], worker: Worker = WORKER) -> Applying:
    """One whose fellow has an agent, too, and signs with it."""
    group = Group(votes)
    fellow = Verdict(group.store, 1, 2, worker, "fellow")
    applying = Applying(lambda: (group, worker), Engines(), SystemClock())
    fellow.enter()
    return applying


def asked(applying: Applying, slots: int = 4, old: object = OLD, is_profile: bool = False) -> Any:
    def ask() -> object:
        return applying.rebalance_experts(torch.ones(1, 4), slots, 1, 1, 2, old)

    return applying.rearranging(ask, is_profile)


def alone(*others: Vote) -> Applying:
    """A rank whose fellows vote as given."""
    return a_rank(lambda mine: [mine, *others])


def with_twin() -> Applying:
    """A rank whose fellow votes as it does."""
    return a_rank(lambda mine: [mine, mine])


def test_without_a_plan_the_map_stays() -> None:
    assert asked(with_twin()) is OLD


def test_the_plan_that_all_hold_is_returned() -> None:
    applying = with_twin()
    assert applying.offer(1, NEW) == ""
    np.testing.assert_array_equal(asked(applying), NEW.placement.physical_to_logical)


def test_the_map_has_the_type_that_the_engine_has() -> None:
    applying = with_twin()
    applying.offer(1, NEW)
    assert asked(applying, old=OLD.to(torch.int32)).dtype == torch.int32


@pytest.mark.parametrize("other", [(0, 0), (2, 7), (1, 7)])
def test_a_rank_with_another_epoch_or_another_map_keeps_everyones(other: Vote) -> None:
    applying = alone(other)
    applying.offer(1, NEW)
    assert asked(applying) is OLD


def test_an_older_epoch_does_not_replace_a_newer_one() -> None:
    applying = with_twin()
    applying.offer(2, NEW)
    applying.offer(1, OTHER)
    np.testing.assert_array_equal(asked(applying), NEW.placement.physical_to_logical)


def test_what_is_applied_is_read_back_and_not_believed() -> None:
    applying = with_twin()
    applying.offer(1, NEW)
    asked(applying)
    applying.verify(OLD.numpy)
    assert (applying.epoch, applying.digest) == (0, "")
    applying._verified_s = 0.0
    applying.verify(lambda: NEW.placement.physical_to_logical)
    assert (applying.epoch, applying.digest) == (1, NEW.placement.digest)
    assert asked(applying) is OLD  # nothing is left to do


def test_a_plan_taken_back_is_a_later_epoch() -> None:
    applying = with_twin()
    for epoch, plan in enumerate((NEW, OTHER, NEW), start=1):
        applying.offer(epoch, plan)
        asked(applying)
        applying._verified_s = 0.0
        applying.verify(lambda plan=plan: plan.placement.physical_to_logical)  # type: ignore[misc]
        assert (applying.epoch, applying.digest) == (epoch, plan.placement.digest)


def test_a_refused_plan_gets_no_vote() -> None:
    votes: list[Vote] = []

    def poll(mine: Vote) -> list[Vote]:
        votes.append(mine)
        return [mine]

    applying = a_rank(poll)
    lost = Plan(Placement(np.array([[0, 2, 1, 1]]), experts=4, gpus=2))
    assert "no slot holds expert 3" in applying.offer(1, lost)
    assert asked(applying) is OLD
    assert votes == [(0, 0)]


def test_no_plan_is_applied_while_the_engine_measures_itself() -> None:
    applying = with_twin()
    applying.offer(1, NEW)
    assert asked(applying, is_profile=True) == "the engine's map of 4 slots"
    np.testing.assert_array_equal(asked(applying), NEW.placement.physical_to_logical)


def test_a_model_that_drafts_is_the_engines_own() -> None:
    applying = with_twin()
    applying.offer(1, NEW)
    assert asked(applying, 4, torch.tensor([[0, 1, 2, 3]] * 2)) == "the engine's map of 4 slots"


@pytest.mark.parametrize("old", [None, OLD, torch.tensor([[0, 1, 2, -1]])])
def test_while_the_width_changes_the_engine_decides(old: object) -> None:
    applying = with_twin()
    applying.offer(1, NEW)
    slots = 4 if old is not OLD else 6
    assert asked(applying, slots, old) == f"the engine's map of {slots} slots"


def test_a_rearrangement_that_does_not_finish_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    applying = with_twin()
    monkeypatch.setattr("placer.agent.vllm.applying.STALLED_S", 0.0)
    assert applying.condition() == ""
    said = applying.rearranging(applying.condition, is_profile=False)
    assert "a rebalance has not finished" in said
    assert asked(applying) is OLD
    assert applying.condition() == ""


def test_an_engine_without_its_balancer_is_told_to_start_it() -> None:
    applying = a_rank(lambda mine: [mine], replace(WORKER, can_apply=False))
    assert "--enable-eplb" in applying.offer(1, NEW)


def test_until_there_is_a_verdict_the_engine_decides_and_nobody_is_asked() -> None:
    def never(mine: Vote) -> list[Vote]:
        raise AssertionError("nobody else would vote")

    group = Group(never)
    applying = Applying(lambda: (group, WORKER), Engines(), SystemClock())
    applying.offer(1, NEW)
    for _ in range(3):
        assert asked(applying) == "the engine's map of 4 slots"
    assert "no agent on rank 1: set PLACER_AGENT there" in applying.condition()


def test_a_store_that_fails_is_the_agents_trouble_and_not_the_engines() -> None:
    group = Group(lambda mine: [mine, mine])
    group.store = None
    applying = Applying(lambda: (group, WORKER), Engines(), SystemClock())
    assert asked(applying) == "the engine's map of 4 slots"
    assert (
        "no plan is applied: the store of the engine's process group fails" in applying.condition()
    )


def test_another_shape_is_another_worker_without_a_plan() -> None:
    group, worker = Group(lambda mine: [mine, mine]), WORKER
    applying = Applying(lambda: (group, worker), Engines(), SystemClock())
    assert (applying.offer(1, NEW), applying.changes) == ("", 1)
    worker = replace(WORKER, slots=8)
    applying.look()
    assert (applying.worker.slots, applying.changes) == (8, 2)
    assert "the engine 8" in applying.offer(1, NEW)
