"""Applying plans: a policy for vLLM's expert load balancer that returns what all ranks agreed on.

vLLM calls the policy on every rank at the same step, and every rank must return the same map. Until
a verdict says that all ranks have agents (see ``verdict``), each returns what vLLM's own policy
does, and waits for nobody. After that each votes for the newest plan that it holds and has checked,
by epoch and digest; only if all votes are the same, the plan is returned, and else the map that
already is. vLLM then moves the weights. What was applied is read back from its map, not believed.

When the group of ranks changes, or the slots that it has, all that begins anew.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from placer.agent.vllm.verdict import Store, Verdict
from placer.arrays import IntArray
from placer.clock import Readings
from placer.placement import Placement
from placer.plan import Plan
from placer.refusal import refusal
from placer.worker import Worker

STALLED_S = 60.0  # a rearrangement that takes longer is reported
VERIFY_EVERY_S = 1.0  # reading the map back makes a GPU wait
LOOK_EVERY_S = 5.0  # for ranks without agents

Vote = tuple[int, int]

log = logging.getLogger("vllm.placer")


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


class Ranks(Protocol):
    """The group whose experts are balanced together, for as long as it is the same one."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def store(self) -> Store: ...

    def votes(self, mine: Vote) -> Sequence[Vote]:
        """All ranks', of this rank's own; every rank must ask."""


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    epoch: int
    placement: Placement

    @property
    def vote(self) -> Vote:
        return self.epoch, int(self.placement.digest.removeprefix("sha256:")[:15], 16)


class Applying:
    """A rank's policy. The engine's threads call ``rebalance_experts``, ``rearranging``, ``look``
    and ``verify``; another one ``offer`` and ``condition``.

    epoch, digest: of the plan that was applied last
    changes: how often the group or its shape was another one, the first time included
    """

    def __init__(
        self, look: Callable[[], tuple[Ranks, Worker]], otherwise: Policy, clock: Readings
    ) -> None:
        self.otherwise, self._clock = otherwise, clock
        self.epoch, self.digest, self.changes = 0, "", 0
        self._look = look
        self._lock = threading.Lock()
        self._entered_s: float | None = None
        self._profiling = False
        self._verified_s = 0.0
        self._fault = ""  # of the group's store
        self._renew(*look())

    def _renew(self, ranks: Ranks, worker: Worker) -> None:
        with self._lock:
            self.ranks, self.worker = ranks, worker
            self._verdict: Verdict | None = None
            self._candidate: _Candidate | None = None
            self._expected: _Candidate | None = None
            self.epoch, self.digest = 0, ""
            self._turn = 0  # of rearrangements in this group
            self.changes += 1
        self._looked_s = self._clock.monotonic()  # others may need a moment
        self._ask(lambda verdict: None)

    def look(self) -> None:
        """See whether the group or its shape is another one; after each step, and more often."""
        ranks, worker = self._look()
        if ranks is not self.ranks or worker != self.worker:
            log.info("placer: %s is one of %d ranks now", worker.name, ranks.size)
            self._renew(ranks, worker)
        elif not self.agreed and self._clock.monotonic() - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = self._clock.monotonic()
            self._ask(Verdict.look)

    @property
    def agreed(self) -> bool:
        """Whether all ranks are known to have agents."""
        return self._verdict is not None and self._verdict.stands

    def offer(self, epoch: int, plan: Plan) -> str:
        """Vote for ``plan`` from now on, or say why not."""
        worker = self.worker
        if reason := refusal(plan, worker):
            return reason
        with self._lock:
            # If the worker changed meanwhile, so did ``changes``, and the plan is offered again.
            newer = self._candidate is None or epoch > self._candidate.epoch
            if worker is self.worker and newer:
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

        The engine decides itself until there is a verdict, while it changes its width, since no
        plan has the new one, and for a model that drafts.
        """
        old, planned = old_global_expert_indices, (self.worker.layers, self.worker.slots)
        # Arguments are alike on all ranks, and after a verdict so is the worker's shape.
        if (
            self._profiling
            or not self._reached()
            or old is None
            or tuple(old.shape) != planned
            or num_replicas != self.worker.slots
            or num_ranks != self.ranks.size
            or bool((old < 0).any())
        ):
            return self.otherwise.rebalance_experts(
                weight, num_replicas, num_groups, num_nodes, num_ranks, old
            )
        with self._lock:
            mine = self._candidate
        votes = self.ranks.votes(mine.vote if mine else (0, 0))
        if mine is None or set(votes) != {mine.vote} or mine.epoch <= self.epoch:
            return old
        self._expected = mine
        table = torch.from_numpy(mine.placement.physical_to_logical.astype(np.int64))
        return table.to(old.dtype)

    def rearranging(self, run: Callable[[], Any], is_profile: bool) -> Any:
        """Run one rearrangement of the engine's, under watch."""
        if not is_profile:
            try:
                self.look()
            except Exception:
                log.exception("placer: cannot see whether the group of ranks changed")
            self._turn += 1
            self._ask(Verdict.enter)
        self._profiling, self._entered_s = is_profile, self._clock.monotonic()
        try:
            return run()
        finally:
            self._profiling, self._entered_s = False, None

    def verify(self, read_map: Callable[[], IntArray]) -> None:
        """See whether an agreed plan has arrived in the engine's map, [layers, slots]."""
        expected, now_s = self._expected, self._clock.monotonic()
        if expected is None or now_s - self._verified_s < VERIFY_EVERY_S:
            return
        self._verified_s = now_s
        wanted = expected.placement
        actual = Placement(read_map(), wanted.experts, wanted.gpus, wanted.nodes)
        if actual.digest == wanted.digest:
            self.epoch, self.digest, self._expected = expected.epoch, actual.digest, None

    def condition(self) -> str:
        """What to report of a rearrangement that does not finish, or of ranks that cannot agree;
        empty if all is well."""
        entered_s = self._entered_s
        if entered_s is not None and (took_s := self._clock.monotonic() - entered_s) >= STALLED_S:
            return (
                f"a rebalance has not finished for {took_s:.0f} s and holds the engine up: a rank "
                "may be gone; restart the engine"
            )
        verdict = self._verdict
        why = self._fault or (verdict.missing if verdict else "")
        return why and f"the engine balances by itself, and no plan is applied: {why}"

    def _reached(self) -> bool:
        if self.agreed:
            return True
        self._ask(lambda verdict: verdict.reached(self._turn))
        return self.agreed

    def _ask(self, what: Callable[[Verdict], object]) -> None:
        """Ask the group's store; a fault there is the agent's condition, not the engine's."""
        try:
            if self._verdict is None:
                ranks, name = self.ranks, self._clock.new_id()
                self._verdict = Verdict(ranks.store, ranks.rank, ranks.size, self.worker, name)
            what(self._verdict)
            self._fault = ""
        except Exception as error:
            said = " ".join((str(error) or repr(error)).split())
            self._fault = f"the store of the engine's process group fails ({said})"
