"""Agents of a story's engines, one a rank: they say who they are, and what was counted."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache

import numpy as np

from controller.fleet.pools import Registration, WorkerId
from controller.fleet.windows import Delta
from controller.loop import Loop
from placer.arrays import IntArray
from placer.errors import PlacerError
from placer.model import ModelShape
from placer.virtual_clock import VirtualClock
from placer.worker import Worker
from simulations.stories.network import Engine
from simulations.stories.operators import Services
from simulations.stories.story import TinyPool
from simulations.stories.watch import Watch

PUSH_S = 25.0
TOKENS = 10_000  # that an engine counts in between


class Agents:
    """The agents of all engines.

    lots:    of each pool's traffic; None: there is none
    doubled: pools whose pushes come twice, the second time late, and again at once
    """

    def __init__(
        self,
        pools: Mapping[str, TinyPool],
        engines: Mapping[tuple[str, str], Engine],
        clock: VirtualClock,
        watch: Watch,
        living: Callable[[], Services | None],
    ) -> None:
        self.pools, self.engines, self.clock, self.watch = pools, engines, clock, watch
        self.living = living
        self.lots = {name: pool.traffic for name, pool in pools.items()}
        self.doubled: set[str] = set()
        self._sequences: dict[WorkerId, int] = {}
        self._late: list[tuple[WorkerId, int, Delta]] = []

    async def run(self) -> None:
        while True:
            if (services := self.living()) is not None:
                loop = services.loop
                late, self._late = self._late, []
                for push in late:
                    self._push(loop, *push)
                for (pool, name), engine in self.engines.items():
                    if not (engine.is_silent or engine.memory.is_gone):
                        self._speak(loop, pool, name, engine)
            await self.clock.sleep(PUSH_S)

    def _speak(self, loop: Loop, pool: str, name: str, engine: Engine) -> None:
        stands = engine.memory.placement
        shape = model(self.pools[pool])
        for rank in range(stands.gpus):
            worker = Worker(
                f"rank-{rank}", "tiny", shape.layers, shape.experts, 1, stands.slots, rank,
                stands.gpus, can_apply=True, records=rank == 0, can_resize=True,
            )  # fmt: skip
            id = WorkerId(pool, name, worker.name, engine.life)
            told = Registration(id, worker, shape, actor="there", digest=stands.digest)
            with suppress(PlacerError):  # it is told what is wrong, and tries again
                loop.fleet.register(told)
                loop.acknowledge(told)
        first = WorkerId(pool, name, "rank-0", engine.life)
        if (lot := self.lots[pool]) is not None:
            load = traffic(lot, shape.layers, shape.experts)
            delta = Delta("decode", 1, int(load[0].sum()), 1, load)
            sequence = self._sequences[first] = self._sequences.get(first, 0) + 1
            self._push(loop, first, sequence, delta)
            if pool in self.doubled:
                again = self._push(loop, first, sequence, delta)
                self.watch.check(not again, "a push counts once", f"{sequence} of {name}")
                self._late.append((first, sequence, delta))

    def _push(self, loop: Loop, id: WorkerId, sequence: int, delta: Delta) -> bool:
        with suppress(PlacerError):
            return loop.fleet.push(id, sequence, [delta])
        return False


@cache
def model(pool: TinyPool) -> ModelShape:
    return ModelShape("tiny", pool.layers, pool.experts, 1, hidden=8, moe_intermediate=4)


@cache
def traffic(lot: int, layers: int, experts: int) -> IntArray:
    """[layers, experts] tokens, unevenly."""
    shares = np.random.default_rng(lot).dirichlet(np.full(experts, 0.7), size=layers)
    load = np.floor(shares * TOKENS).astype(np.uint32)
    load[:, 0] += (TOKENS - load.sum(axis=1)).astype(np.uint32)
    return load
