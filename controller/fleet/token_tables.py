"""Table files (docs/tables.md) made of sampled requests, for the maps that are served."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from controller.fleet.pools import Pool
from controller.fleet.traces import Request, SampledRequests, trace_of
from controller.fleet.workers import FleetError
from placer.clock import Clock
from placer.files.tables import tables_bytes
from placer.model import ModelShape
from placer.placement import Placement
from placer.tables import counted, tables_of

REMADE_S = 60.0  # new requests come all the time: a map's tables are made no more often


@dataclass(frozen=True, slots=True)
class _Made:
    digest: str
    at_s: float
    newest: tuple[int, float]
    file: bytes


class TokenTables:
    """The newest of each pool, made beside the loop, when somebody asks for them."""

    def __init__(self, traces: SampledRequests, clock: Clock) -> None:
        self._traces, self._clock = traces, clock
        self._made: dict[str, _Made] = {}
        self._turn = asyncio.Lock()
        self._beside = ThreadPoolExecutor(1, "tables")

    async def of(self, pool: Pool, placement: Placement) -> bytes:
        """The file. Raises FleetError if no request with token ids is kept."""
        async with self._turn:
            last, now_s = self._made.get(pool.name), self._clock.monotonic()
            same = last is not None and last.digest == placement.digest
            if last is not None and same and now_s - last.at_s < REMADE_S:
                return last.file
            kept = [
                (at_s, one)
                for at_s, one in self._traces.of(pool.name, pool.model)
                if one.token_ids is not None
            ]
            if not kept:
                raise FleetError(
                    f"no requests of {pool.name} with token ids are kept: set traces.requests and "
                    "traces.token_ids of the pool, and wait until some have ended"
                )
            newest = len(kept), kept[-1][0]
            if last is not None and same and last.newest == newest:
                return last.file
            parts = [one for _, one in kept], pool.model, placement
            running = asyncio.get_running_loop()
            file = await running.run_in_executor(self._beside, _file, *parts)
            self._made[pool.name] = _Made(placement.digest, now_s, newest, file)
            return file


def _file(requests: Sequence[Request], model: ModelShape, placement: Placement) -> bytes:
    return tables_bytes(tables_of(counted(trace_of(requests), placement), model))
