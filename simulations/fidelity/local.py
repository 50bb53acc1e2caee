"""The local engine, unpaced: real processes that compute, one a rank."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from controller.local_engine.local_engine import LocalEngine
from controller.local_engine.ranks.exchange import CHUNK, SEATS
from controller.local_engine.requests import Request
from controller.migration.commands import Agree, Command, Commit, Copy, Done, Drop, Stage
from placer import topology
from placer.cost.balance import rank_load
from placer.errors import PlacerError
from placer.placement import Placement
from placer.schedule import Budget, schedule
from simulations.arrivals import Arrivals
from simulations.fidelity.seen import Seen

BUDGET, PROMPTS = CHUNK + SEATS, CHUNK
VOCABULARY = 256
WARM_UP = 8  # requests, before any is measured


def serve(model: Path, placement: Placement, arrivals: Arrivals, seed: int) -> Seen:
    """By a fresh engine on ``placement``, whose prompts are drawn."""
    lots, count = np.random.default_rng(seed), len(arrivals)
    prompts = [lots.integers(VOCABULARY, size=size).tolist() for size in arrivals.prompt]
    first_s, last_s = np.zeros(count), np.zeros(count)
    with LocalEngine(model, placement.gpus, placement.slots) as engine:
        for command in _commands(engine, placement):
            insist(engine, command)
        for one in [engine.submit(prompt, 16) for prompt in prompts[:WARM_UP]]:
            one.tokens()
        engine.record()
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
    return Seen(arrivals, first_s, last_s, load, rank_load(load, placement))


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
