"""Applying plans: a policy for vLLM's expert load balancer that returns what all ranks agreed on.

vLLM calls the policy on every rank at the same step, and every rank must return the same map. Each
votes for the newest plan that it holds and has checked, by epoch and digest; only if all votes are
the same, the plan is returned, and else the map that already is. vLLM then moves the weights. What
was applied is read back from its map, and not believed.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from placer.arrays import IntArray
from placer.placement import Placement
from placer.plan import Plan
from placer.refusal import refusal
from placer.worker import Worker

STALLED_S = 60.0  # a rearrangement that takes longer is reported
VERIFY_EVERY_S = 1.0  # reading the map back makes a GPU wait

Vote = tuple[int, int]
# All ranks' votes, of this rank's own.
Poll = Callable[[Vote], Sequence[Vote]]


class Policy(Protocol):
    """vLLM's AbstractEplbPolicy."""

    def rebalance_experts(
        self,
        weight: torch.Tensor,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    epoch: int
    placement: Placement

    @property
    def vote(self) -> Vote:
        return self.epoch, int(self.placement.digest.removeprefix("sha256:")[:15], 16)


class Applying:
    """Of one rank. The engine's threads call ``rebalance_experts``, ``rearranging`` and ``verify``;
    another one ``offer`` and ``stalled``."""

    def __init__(self, worker: Worker, poll: Poll, otherwise: Policy) -> None:
        self.worker = worker
        self.epoch, self.digest = 0, ""
        self._poll, self._otherwise = poll, otherwise
        self._candidate: _Candidate | None = None
        self._expected: _Candidate | None = None
        self._lock = threading.Lock()
        self._entered_s: float | None = None
        self._profiling = False
        self._verified_s = 0.0

    def offer(self, epoch: int, plan: Plan) -> str:
        """Vote for ``plan`` from now on, or say why not."""
        if reason := refusal(plan, self.worker):
            return reason
        with self._lock:
            if self._candidate is None or epoch > self._candidate.epoch:
                self._candidate = _Candidate(epoch, plan.placement)
        return ""

    def rebalance_experts(
        self,
        weight: torch.Tensor,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[layers, slots] the plan that all ranks agreed on, or the map as it is.

        While the engine changes its width it decides itself, since no plan has the new one, and
        so it does for a model that drafts.
        """
        old, planned = old_global_expert_indices, (self.worker.layers, self.worker.slots)
        if (
            old is None
            or tuple(old.shape) != planned
            or num_replicas != self.worker.slots
            or bool((old < 0).any())
        ):
            return self._otherwise.rebalance_experts(
                weight, num_replicas, num_groups, num_nodes, num_ranks, old
            )
        if self._profiling:
            return old
        with self._lock:
            mine = self._candidate
        votes = self._poll(mine.vote if mine else (0, 0))
        if mine is None or set(votes) != {mine.vote} or mine.epoch <= self.epoch:
            return old
        self._expected = mine
        table = torch.from_numpy(mine.placement.physical_to_logical.astype(np.int64))
        return table.to(old.dtype)

    def rearranging(self, run: Callable[[], Any], is_profile: bool) -> Any:
        """Run one rearrangement of the engine's, under watch."""
        self._profiling, self._entered_s = is_profile, time.monotonic()
        try:
            return run()
        finally:
            self._profiling, self._entered_s = False, None

    def verify(self, read_map: Callable[[], IntArray]) -> None:
        """See whether an agreed plan has arrived in the engine's map, [layers, slots]."""
        expected, now_s = self._expected, time.monotonic()
        if expected is None or now_s - self._verified_s < VERIFY_EVERY_S:
            return
        self._verified_s = now_s
        wanted = expected.placement
        actual = Placement(read_map(), wanted.experts, wanted.gpus, wanted.nodes)
        if actual.digest == wanted.digest:
            self.epoch, self.digest, self._expected = expected.epoch, actual.digest, None

    def stalled(self) -> str:
        """What to report of a rearrangement that does not finish; empty if all is well."""
        entered_s = self._entered_s
        if entered_s is None or time.monotonic() - entered_s < STALLED_S:
            return ""
        return (
            f"a rebalance has not finished for {time.monotonic() - entered_s:.0f} s and holds the "
            "engine up: a rank may be gone; restart the engine"
        )
