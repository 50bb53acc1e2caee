"""What happens in a story, drawn from its seed: deeds and faults, that can be read aloud."""

import random
from dataclasses import dataclass

import numpy as np

from controller.config import Mode
from placer.placement import EMPTY, Placement

LASTS_S = 720.0  # until everything heals
MODES: tuple[Mode, ...] = ("advisory", "automatic")
COMMANDS = (
    "Stage", "Agree", "Drop", "Copy", "Commit", "Transfer", "Switch", "Release", "Verify",
    "Discard",
)  # fmt: skip
DEEDS = {
    "propose": "an operator proposes a plan for {pool} (lot {lot})",
    "approve": "an operator approves what waits in {pool}",
    "apply": "an operator proposes a plan for {pool} (lot {lot}) and applies it, as {key}",
    "apply twice": "an operator applies a plan to {pool} (lot {lot}), and asks again {wait:g} s "
    "later, as {key}",
    "rollback": "an operator rolls {pool} back, as {key}",
    "rollback twice": "an operator rolls {pool} back, and asks again {wait:g} s later, as {key}",
    "scale": "an operator gives {pool} {ranks} ranks {turn}, as {key}",
    "scale twice": "an operator gives {pool} {ranks} ranks {turn}, and asks again {wait:g} s "
    "later, as {key}",
    "freeze": "an operator starts the controller again, with {pool} frozen",
    "unfreeze": "an operator starts the controller again, with {pool} not frozen",
    "shift": "the traffic of {pool} shifts (lot {lot})",
}
# Those that can come over a command, at the moment that it reaches the engine or was carried out.
MOODS = {
    "kill": "the controller is killed, and back {lasts:g} s later",
    "lose it": "it is lost on its way",
    "lose the answer": "its answer is lost",
    "delay": "it takes {lasts:g} s",
    "twice": "it comes again {lasts:g} s later",
    "rank dies": "a rank dies in it, and the engine is back {lasts:g} s later",
}
FAULTS = {
    "kill": MOODS["kill"],
    "partition": "no command reaches {pool} for {lasts:g} s",
    "deaf": "no answer comes from {engine} of {pool} for {lasts:g} s",
    "slow": "commands to {pool} take {wait:g} s, for {lasts:g} s",
    "engine lost": "{engine} of {pool} is lost for {lasts:g} s",
    "engine anew": "{engine} of {pool} is lost for {lasts:g} s, and starts with its first map",
    "silent": "agents of {engine} of {pool} are silent for {lasts:g} s",
    "pushes twice": "pushes of {pool} come twice, the second time late, for {lasts:g} s",
    "clock": "the wall clock is put {ahead} by {jump:g} s",
    "disk full": "the ledger's disk is full for {lasts:g} s",
    "wrong map": "{engine} of {pool} says that it has another map (lot {lot}), for {lasts:g} s",
}


@dataclass(frozen=True, slots=True)
class Event:
    """A deed or a fault.

    at_s:     when, if it is not ``on`` a command
    on, nth:  the kind of command and which of those, from 1, that it comes over;
              is_after: when that was carried out, and not answered yet
    lasts_s, wait_s, jump_s: seconds, as ``what`` needs them
    pool, engine: by number
    ranks:    that engines should have
    lot:      of a placement, or of traffic
    """

    what: str
    at_s: float = 0.0
    on: str = ""
    nth: int = 0
    is_after: bool = False
    pool: int = 0
    engine: int = 0
    lasts_s: float = 0.0
    wait_s: float = 0.0
    jump_s: float = 0.0
    ranks: int = 0
    lot: int = 0
    key: str = ""

    @property
    def in_turn(self) -> bool:
        """Whether a change of width may wait for its turn, or is refused until then."""
        return self.lot % 2 == 1

    @property
    def is_fault(self) -> bool:
        return self.what not in DEEDS

    def __str__(self) -> str:
        words = MOODS if self.on else DEEDS | FAULTS
        told = words[self.what].format(
            pool=f"p{self.pool}", engine=f"e{self.engine}", lot=self.lot, key=self.key,
            wait=self.wait_s, lasts=self.lasts_s, ranks=self.ranks, jump=abs(self.jump_s),
            turn="in their turn" if self.in_turn else "at once",
            ahead="on" if self.jump_s > 0 else "back",
        )  # fmt: skip
        if not self.on:
            return f"after {self.at_s:g} s {told}"
        moment = "is carried out" if self.is_after else "arrives"
        return f"as {self.on} number {self.nth} {moment}, {told}"


@dataclass(frozen=True, slots=True)
class TinyPool:
    """layers, experts: of its model; engines; ranks: of an engine; extra: slots of a rank that
    replicas have; traffic: the lot of what there is at the beginning, if there is any"""

    layers: int
    experts: int
    engines: int
    ranks: int
    extra: int
    mode: Mode
    confirmations: int
    traffic: int | None = None

    @property
    def slots(self) -> int:
        return (-(-self.experts // self.ranks) + self.extra) * self.ranks

    def __str__(self) -> str:
        return (
            f"{self.engines} engines of {self.ranks} ranks, {self.layers} layers x {self.experts} "
            f"experts in {self.slots} slots, {self.mode}"
        )


@dataclass(frozen=True, slots=True)
class Story:
    seed: int
    pools: tuple[TinyPool, ...]
    events: tuple[Event, ...]

    def __str__(self) -> str:
        pools = [f"  p{number}: {pool}" for number, pool in enumerate(self.pools)]
        events = [f"  {number}. {event}" for number, event in enumerate(self.events)]
        return "\n".join([f"seed {self.seed}", *pools, *events])


def a_story(seed: int) -> Story:
    lots = random.Random(seed)
    pools = tuple(_pool(lots) for _ in range(lots.choice((1, 1, 1, 2, 3))))
    deeds = [_deed(lots, pools, number) for number in range(lots.randint(1, 6))]
    faults = [_fault(lots, pools) for _ in range(lots.choice((0, 1, 2, 3, 4, 6)))]
    events = sorted([*deeds, *faults], key=lambda one: (bool(one.on), one.at_s, one.on, one.nth))
    return Story(seed, pools, tuple(events))


def a_map(lot: int, pool: TinyPool, ranks: int, slots: int) -> Placement:
    """No expert is twice on a rank: slots beyond that are empty."""
    lots, own, rows = random.Random(lot), slots // ranks, []
    for _ in range(pool.layers):
        parts: list[list[int]] = [[] for _ in range(ranks)]
        for expert in lots.sample(range(pool.experts), pool.experts):
            least = min(map(len, parts))
            lots.choice([part for part in parts if len(part) == least]).append(expert)
        for part in parts:
            others = [one for one in range(pool.experts) if one not in part]
            free = own - len(part)
            part += [*lots.sample(others, min(free, len(others))), *[EMPTY] * (free - len(others))]
        rows.append([expert for part in parts for expert in part])
    return Placement(np.array(rows), pool.experts, ranks, 1)


def _pool(lots: random.Random) -> TinyPool:
    return TinyPool(
        layers=lots.randint(2, 4),
        experts=lots.randint(4, 8),
        engines=lots.choice((1, 1, 2, 2, 3)),
        ranks=lots.choice((2, 2, 3, 4)),
        extra=lots.choice((0, 1)),
        mode=lots.choice(MODES),
        confirmations=lots.choice((1, 2)),
        traffic=lots.choice((None, lots.randrange(1000))),
    )


def _deed(lots: random.Random, pools: tuple[TinyPool, ...], number: int) -> Event:
    what = lots.choice(("apply", "apply", *DEEDS))
    at = lots.randrange(len(pools))
    return Event(
        what, at_s=_moment(lots), pool=at, wait_s=lots.choice((0.0, 0.3, 5.0, 70.0)),
        ranks=lots.choice((2, 3, 4)), lot=lots.randrange(1000), key=f"k{number}",
    )  # fmt: skip


def _fault(lots: random.Random, pools: tuple[TinyPool, ...]) -> Event:
    at = lots.randrange(len(pools))
    lasts_s = lots.choice((0.5, 5.0, 30.0, 65.0, 150.0, 400.0))
    if lots.random() < 0.6:
        what, on = lots.choice(list(MOODS)), lots.choice(COMMANDS)
        nth = lots.choice((1, 1, 2, 3, 5))
        return Event(what, on=on, nth=nth, is_after=lots.random() < 0.5, lasts_s=lasts_s)
    jump_s = lots.choice((-7200.0, -90.0, -1.0, 2.0, 90.0, 7200.0))
    return Event(
        lots.choice(list(FAULTS)), at_s=_moment(lots), pool=at,
        engine=lots.randrange(pools[at].engines), lasts_s=lasts_s,
        wait_s=lots.choice((2.0, 20.0, 59.0, 90.0)), jump_s=jump_s, lot=lots.randrange(1000),
    )  # fmt: skip


def _moment(lots: random.Random) -> float:
    return round(lots.uniform(60.0, LASTS_S * 2 / 3), 1)
