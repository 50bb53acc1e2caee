"""Table files (docs/tables.md) made of sampled requests, for the maps that are served."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from controller.fleet.pools import Pool
from controller.fleet.traces import Request, SampledRequests, trace_of
from controller.fleet.workers import FleetError
from placer.arrays import Float32Array, Floats
from placer.clock import Clock
from placer.files.tables import tables_bytes
from placer.model import ModelShape
from placer.placement import Placement
from placer.tables import Vocabulary, counted, tables_of, token_identity
from placer.tables.answers import Answered, halves
from placer.tables.factors import Factors
from placer.tables.owning import away, local

REMADE_S = 60.0  # new requests come all the time: a map's tables are made no more often
REST = 9.0  # times what making them took, besides: a tenth of a core


class Told(NamedTuple):
    """What tables of before a request came foretell of its tokens.

    local:  share of their activations that their own GPU can serve
    remote: other GPUs that one is sent to, mean of layers
    unused: [layers, experts] chance that one does not use an expert, as ``distinct`` has it
    """

    local: float
    remote: float
    unused: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """due_s: when requests may make others; local: [rows, gpus] share of a token's activations that
    each GPU can serve; away: [rows, gpus] other GPUs that it is sent to from each"""

    digest: str
    due_s: float
    newest: tuple[int, float]
    file: bytes
    vocabulary: Vocabulary
    local: Float32Array
    away: Float32Array
    used: Factors


class TokenTables:
    """The newest of each pool, made beside the loop, when somebody asks for them."""

    def __init__(self, traces: SampledRequests, clock: Clock) -> None:
        self._traces, self._clock = traces, clock
        self._made: dict[str, _Made] = {}
        self._foretold: WeakKeyDictionary[Request, Told] = WeakKeyDictionary()
        self._turn = asyncio.Lock()
        self._beside = ThreadPoolExecutor(1, "tables")

    async def of(self, pool: Pool, placement: Placement) -> bytes:
        """The file. Raises FleetError if no request with token ids is kept."""
        async with self._turn:
            last, now_s = self._made.get(pool.name), self._clock.monotonic()
            same = last is not None and last.digest == placement.digest
            if last is not None and same and now_s < last.due_s:
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
            running = asyncio.get_running_loop()
            if last is not None:
                fresh = [one for at_s, one in kept if at_s > last.newest[1]]
                told = await running.run_in_executor(self._beside, _foretold, last, fresh)
                self._foretold.update(told)
            parts = [one for _, one in kept], pool.model, placement, _vocabulary(pool)
            made = await running.run_in_executor(self._beside, _counted, *parts)
            took_s = self._clock.monotonic() - now_s
            due_s = now_s + took_s + max(REMADE_S, REST * took_s)
            self._made[pool.name] = _Made(placement.digest, due_s, newest, *made)
            return self._made[pool.name].file

    def foretold(self, requests: Sequence[Request]) -> Mapping[Request, Told]:
        """What the tables of before they came said of them. Of those of which that is known."""
        return {one: self._foretold[one] for one in requests if one in self._foretold}


def _foretold(made: _Made, requests: Sequence[Request]) -> Mapping[Request, Told]:
    """Of those that were served under the map that they are for."""
    found = {}
    for one in requests:
        is_there = one.plan == made.digest and 0 <= one.rank < made.local.shape[1]
        if is_there and one.token_ids is not None:
            rows = made.vocabulary.rows(one.token_ids)
            chance = made.used.weights[rows].mean(axis=0) @ made.used.basis / made.used.every
            unused = 1 - np.clip(chance, 0, 1).astype(np.float32).reshape(-1, one.experts)
            at_home, sent = (float(of[rows, one.rank].mean()) for of in (made.local, made.away))
            found[one] = Told(at_home, sent, unused)
    return found


def _counted(
    requests: Sequence[Request], model: ModelShape, placement: Placement, vocabulary: str
) -> tuple[bytes, Vocabulary, Float32Array, Float32Array, Factors]:
    counts = counted(trace_of(requests), placement)
    made = tables_of(counts, model, vocabulary, answered=_answered(requests))
    table = counts.table
    at_home, sent = (find(table, placement).astype(np.float32) for find in (local, away))
    return tables_bytes(made), table.vocabulary, at_home, sent, made.used


def _answered(requests: Sequence[Request]) -> Iterator[Answered]:
    """Answers with the prompts that they are to, and what does not tell where it begins."""
    prompts = {id(one.token_ids): one for one in requests}
    for one in requests:
        if one.asked is not None:
            prompt = prompts.get(id(one.asked))  # which may have been dropped
            own = trace_of([one] if prompt is None else [prompt, one])
            first = own.tokens - one.tokens
            yield Answered(one.asked, token_identity(own), own.expert_ids, first)
        elif one.phase == "mixed":
            yield from halves(trace_of([one]))


def _vocabulary(pool: Pool) -> str:
    """Its engines'; empty if none tells. Raises FleetError where they have several."""
    told = {one.registration.worker.vocabulary for one in pool.members.values()} - {""}
    if len(told) > 1:
        raise FleetError(
            f"engines of {pool.name} have vocabularies {' and '.join(sorted(told))}, and tokens of "
            "one are not the other's: give each model a pool of its own"
        )
    return next(iter(told), "")
