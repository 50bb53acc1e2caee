"""Seconds of changes of the local engine's width, predicted by placer/resize and measured."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

from controller.local_engine.local_engine import LocalEngine
from controller.migration.commands import Agree, Command, Release, Stage, Switch, Transfer
from placer import topology
from placer.placement import Placement, linear
from placer.plan import Infeasible
from placer.resize import Devices, Engine, Resize, Speeds, resize
from placer.topology import Link
from simulations.fidelity.local import insist
from simulations.fidelity.seen import SCALING, Compared

WIDTHS = (2, 4, 2, 3, 4, 3, 2)
FITTED = ((2, 4), (4, 2))
ROUNDS = 6  # of two engines each
STANDBYS = 2
FROM_MEMORY = Speeds(disk_bytes_per_s=1.0)  # a checkpoint would be slower
LINK = Link(1e9, 0.0)  # bytes a second, and no latency: from one's memory to another's
Pair = tuple[int, int]


def scaling(model: Path) -> Iterator[Compared]:
    """How much faster this host is than placer/resize takes it for is fitted on one pair of widths,
    up and down apart, since memory that serves must be made first; the other pairs count."""
    found = _measured(model)
    for fitted in FITTED:
        pace = median(one.took_s / one.expected_s for one in found[fitted])
        for (before, after), changes in sorted(found.items()):
            if (before, after) == fitted or (after > before) != (fitted[1] > fitted[0]):
                continue
            measured = [one.took_s for one in changes]
            ours = pace * median(one.expected_s for one in changes)
            engines = [median(measured[at::2]) for at in (0, 1)]
            theirs = median(measured)
            repeated = abs(engines[0] - engines[1]) / theirs
            told = ours * 1e3, theirs * 1e3
            what = f"from {before} to {after} ranks"
            yield Compared(what, *told, repeated, SCALING, "{:.1f} ms")


class Change:
    """From one map to another, on an engine's devices, and the seconds that it took."""

    def __init__(self, engine: LocalEngine, after: int) -> None:
        self._before, self._at = engine.placement, tuple(engine.order)
        spare = [one for one in range(max(WIDTHS)) if one not in self._at]
        self._to = (*self._at, *spare)[:after]
        self._engine = Engine(engine.shape.expert_bytes, engine.shape.other_bytes, 2**40)
        experts = self._before.experts
        slots = -(-experts // after) * after
        self._after = linear(self._before.layers, slots, experts, after)
        self.took_s = 0.0

    @property
    def expected_s(self) -> float:
        return self.way().seconds.total

    def way(self) -> Resize:
        hardware = replace(topology.preset("h100").resized(max(WIDTHS), 1), local=LINK)
        devices = Devices(hardware, self._at, self._to)
        engine = replace(self._engine, speeds=FROM_MEMORY)
        found = resize(self._before, self._after, devices, engine)
        assert not isinstance(found, Infeasible), found.reason
        return found


def _measured(model: Path) -> dict[Pair, list[Change]]:
    """Of two engines in turns, the first one's first."""
    found: dict[Pair, list[Change]] = {}
    with ExitStack() as stack:
        start = partial(LocalEngine, model, WIDTHS[0], smallest=2, standbys=STANDBYS, spares=2)
        engines = [stack.enter_context(start()) for _ in range(2)]
        epoch = 0
        for _ in range(ROUNDS):
            for pair in pairwise(WIDTHS):
                epoch += 1
                for engine in engines:
                    found.setdefault(pair, []).append(_changed(engine, pair[1], epoch))
    return found


def _changed(engine: LocalEngine, ranks: int, epoch: int) -> Change:
    change = Change(engine, ranks)
    after = change.way().after
    begun_s = time.perf_counter()
    for command in _commands(engine.placement, after, epoch):
        insist(engine, command)
    change.took_s = time.perf_counter() - begun_s
    insist(engine, Release(epoch))
    while len(engine.standbys()) < STANDBYS:  # processes that start would disturb who follows
        time.sleep(0.05)
    return change


def _commands(before: Placement, after: Placement, epoch: int) -> Sequence[Command]:
    return Stage(epoch, before, after), Agree(epoch), Transfer(epoch), Switch(epoch)
