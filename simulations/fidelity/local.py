"""The local engine, unpaced: real processes that compute, one a rank, each on a core of its own."""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from controller.local_engine.local_engine import LocalEngine
from controller.local_engine.model.weights import Sizes
from controller.local_engine.ranks.exchange import CHUNK, SEATS
from controller.local_engine.ranks.messages import Bind, Stepped
from controller.local_engine.requests import Plan, Request
from controller.local_engine.tally import Tally
from controller.migration.commands import Agree, Command, Commit, Copy, Done, Drop, Stage
from placer import topology
from placer.clock import Readings
from placer.cost.balance import rank_load
from placer.errors import PlacerError
from placer.placement import Placement
from placer.schedule import Budget, schedule
from simulations.arrivals import Arrivals
from simulations.fidelity.seen import Seen, Steps, joined

BUDGET, PROMPTS = CHUNK + SEATS, CHUNK
VOCABULARY = 256
WARM_UP = 8  # requests, before any is measured


class Watched(LocalEngine):
    """answers: of its ranks, step by step; took_s: seconds of each step"""

    def __init__(self, model: Path, placement: Placement) -> None:
        self.answers, self.took_s = list[Sequence[Stepped]](), list[float]()
        super().__init__(model, placement.gpus, placement.slots)
        self._tally = _Kept(self._sizes, self._clock, self.answers)
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) >= placement.gpus:  # those that share cores have to sleep
            binds = {rank: Bind(core) for rank, core in enumerate(cores[: placement.gpus])}
            self._between_steps(partial(self._ranks.ask, binds))

    def _step(self) -> None:
        begun_s = self._clock.monotonic()
        super()._step()
        if len(self.answers) > len(self.took_s):
            self.took_s.append(self._clock.monotonic() - begun_s)


class _Kept(Tally):
    """A tally that keeps what it is told."""

    def __init__(self, sizes: Sizes, clock: Readings, answers: list[Sequence[Stepped]]) -> None:
        super().__init__(sizes, clock)
        self._answers = answers

    def step(self, step: Plan, answers: Sequence[Stepped], seconds: float) -> None:
        super().step(step, answers, seconds)
        self._answers.append(answers)


class Server:
    """A fresh engine on a placement. It serves what comes, and then what comes next."""

    def __init__(self, model: Path, placement: Placement) -> None:
        self._engine, self._placement = Watched(model, placement), placement
        self._served = list[Seen]()
        for command in _commands(self._engine, placement):
            insist(self._engine, command)
        for one in [self._engine.submit(range(20), 16) for _ in range(WARM_UP)]:
            one.tokens()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._engine.close()

    def serve(self, arrivals: Arrivals, seed: int) -> Seen:
        """Prompts are drawn."""
        engine, count = self._engine, len(arrivals)
        lots = np.random.default_rng(seed)
        prompts = [lots.integers(VOCABULARY, size=size).tolist() for size in arrivals.prompt]
        first_s, last_s = np.zeros(count), np.zeros(count)
        engine.record()
        engine.answers.clear()
        engine.took_s.clear()
        requests, begun_s = list[Request](), time.perf_counter()

        def tell(at: int) -> None:
            last_s[at] = time.perf_counter() - begun_s
            if len(requests[at].generated) == 1:
                first_s[at] = last_s[at]

        for at, prompt in enumerate(prompts):
            time.sleep(max(begun_s + arrivals.at_s[at] - time.perf_counter(), 0.0))
            requests.append(engine.submit(prompt, int(arrivals.output[at])))
            requests[at].tell(partial(tell, at))
        for request in requests:
            request.tokens()
        load = engine.record().counts.load.sum(axis=0).astype(np.float64)
        by_rank = rank_load(load, self._placement)
        self._served.append(Seen(arrivals, first_s, last_s, load, by_rank, self._steps))
        return self._served[-1]

    def seen(self) -> Seen:
        """All that it served."""
        return joined(self._served)

    @property
    def _steps(self) -> Steps:
        answers, active = self._engine.answers, []
        for one in answers:
            used = np.zeros((self._placement.layers, self._placement.experts))
            chosen = np.concatenate([rank.experts for rank in one])
            used[np.arange(len(used))[:, None], chosen] = 1
            active.append(rank_load(used, self._placement))
        tokens = np.array([[len(rank.experts) for rank in one] for one in answers])
        return Steps(
            np.array(self._engine.took_s),
            tokens,
            np.array(active),
            np.array([[rank.waited_s for rank in one] for one in answers]),
            np.zeros_like(tokens),  # not told: its six constants are others
        )


def insist(engine: LocalEngine, command: Command) -> None:
    if not isinstance(outcome := engine.carry_out(command), Done):
        raise PlacerError(f"{type(command).__name__}: {outcome}: start again")


def _commands(engine: LocalEngine, after: Placement) -> Iterator[Command]:
    before, size = engine.placement, engine.shape.expert_bytes
    hardware = topology.preset("h100").resized(after.gpus)
    way = schedule(before, after, size, hardware, Budget(8 * size, scratch_slots=2))
    yield Stage(1, before, way.after)
    yield Agree(1)
    for round in way.rounds:
        yield Drop(1, round)
        yield Copy(1, round)
        yield Commit(1, round)
