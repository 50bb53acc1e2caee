"""Engines of several sizes, and how they change their width."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench.random_model import random_model
from controller.local_engine.local_engine import LocalEngine
from controller.local_engine.ranks.messages import Pace
from controller.migration.commands import Agree, Command, Done, Release, Stage, Switch, Transfer
from placer.placement import Placement

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("ROUNDS", "7"))
MB = 1e6


@dataclass
class Model:
    """streams: that the devices of this pace bear on 2 cores"""

    name: str
    folder: Path
    pace: Pace
    streams: int
    tokens: int


def models(folder: Path) -> Iterator[Model]:
    example = ROOT / "examples" / "tiny_moe" / "model"
    shapes = {"200": (8, 256, 512), "1000": (10, 512, 1024)}
    for size in os.environ.get("SIZES", "example,200,1000").split(","):
        if size == "example":
            yield Model("the example model, 10 MB", example, Pace(0.04, 0.002), 12, 260)
            continue
        made = folder / size
        total = random_model(made, *shapes[size])
        pace = Pace(0.1, 0.002) if size == "200" else Pace(0.3, 0.002)
        yield Model(f"random weights, {total / MB:.0f} MB", made, pace, 6, 120)


def an_engine(model: Model, ranks: int, most: int = 4, **options: Any) -> LocalEngine:
    waiting = {"standbys": most - ranks, "spares": most - ranks, "smallest": 2, **options}
    return LocalEngine(model.folder, ranks, slots_of(ranks), **waiting)


def slots_of(ranks: int) -> int:
    return -(-16 // ranks) * ranks


def nearest(now: Placement, ranks: int) -> Placement:
    """The fewest copies from where it stands, as the controller's plan: every device keeps what
    fits, and what is over goes where there is room."""
    size = slots_of(ranks) // ranks
    rows = []
    for row in now.physical_to_logical.reshape(now.layers, now.gpus, -1).tolist():
        here = [[one for one in several if one >= 0] for several in row[:ranks]]
        here += [[] for _ in range(ranks - len(here))]
        count = {expert: sum(expert in one for one in here) for expert in range(now.experts)}
        for one in here:  # replicas go first, then what another can take
            for expert in sorted(one, key=lambda e: -count[e])[: max(len(one) - size, 0)]:
                one.remove(expert)
                count[expert] -= 1
        for expert in (one for one in range(now.experts) if not count[one]):
            min(here, key=len).append(expert)
        rows.append([several + [-1] * (size - len(several)) for several in here])
    return Placement(np.array(rows).reshape(now.layers, -1), now.experts, ranks)


def commands(engine: LocalEngine, after: Placement, epoch: int) -> Iterator[Command]:
    """To where the new ranks serve."""
    yield Stage(epoch, engine.placement, after)
    yield Agree(epoch)
    yield Transfer(epoch)
    yield Switch(epoch)


def resize(engine: LocalEngine, ranks: int, epoch: int) -> tuple[float, int]:
    """Seconds until they serve, and the bytes that went between devices."""
    begun_s, copied = perf_counter(), 0
    for command in commands(engine, nearest(engine.placement, ranks), epoch):
        outcome = engine.carry_out(command)
        assert isinstance(outcome, Done), outcome
        copied += outcome.copied_bytes
    took_s = perf_counter() - begun_s
    engine.carry_out(Release(epoch))
    return took_s, copied


def first_token(engine: LocalEngine) -> None:
    next(iter(engine.submit(b"a", 1)))
