"""Pools, their engines and workers, as they are known; engines of a pool may differ in width."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from controller.fleet.windows import Window
from placer.model import ModelShape
from placer.pace import Pace, merged
from placer.profile import Profile, merge
from placer.worker import GONE_S, NOWHERE, Pod, Worker

NOBODY = ("", "")  # as engine and worker


@dataclass(frozen=True, slots=True)
class WorkerId:
    pool: str
    engine: str
    worker: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Registration:
    """What a worker says of itself, again and again.

    shape:  the model's sizes, if it knows them
    actor:  the Ray actor that carries out migrations, if there is one
    api:    the API server that changes its engine's width, if somebody said
    metrics: where its engine answers with its metrics, if somebody said
    epoch, digest: of the plan that was applied last, as read back from the engine's map
    pod:    where it runs, if somebody said
    """

    id: WorkerId
    worker: Worker
    shape: ModelShape | None = None
    actor: str = ""
    api: str = ""
    epoch: int = 0
    digest: str = ""
    refused_epoch: int = 0
    refused: str = ""
    tokens: int = 0
    dropped: int = 0
    condition: str = ""
    metrics: str = ""
    pod: Pod = NOWHERE

    @property
    def model(self) -> ModelShape:
        if self.shape is not None:
            return self.shape
        worker = self.worker
        return _unsized(worker.model, worker.layers, worker.experts, worker.top_k)


@lru_cache(256)
def _unsized(model: str, layers: int, experts: int, top_k: int) -> ModelShape:
    """Of workers that do not know their model's sizes."""
    name = model.rsplit("/", 1)[-1]
    return ModelShape(name, layers, experts, top_k, 4096, 2048, sized=False)


@dataclass(slots=True)
class Member:
    """One worker, as seen last.

    last_seen_s: by the fleet's monotonic clock
    sequence: of its newest push; lost: pushes that never came
    """

    registration: Registration
    last_seen_s: float
    sequence: int = 0
    lost: int = 0

    @property
    def missed(self) -> int:
        """Pushes that never came, as it or its numbers say."""
        return max(self.registration.dropped, self.lost)


def kinds(members: Iterable[Member]) -> list[Member]:
    """The first of those that differ by name and rank alone: what is asked of one is of all."""
    found: dict[Worker, Member] = {}
    for member in members:
        found.setdefault(replace(member.registration.worker, name="", ep_rank=0), member)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Width:
    """An engine's width. slots: a layer, on all its ranks"""

    ranks: int
    slots: int


def width_of(members: Iterable[Member]) -> Width | None:
    """What all members of an engine say that were seen lately, as seen from the newest; None while
    they do not agree: it is being resized."""
    known = list(members)
    since_s = max(member.last_seen_s for member in known) - GONE_S
    workers = [one.registration.worker for one in known if one.last_seen_s > since_s]
    said = {(worker.ep_size, worker.slots) for worker in workers}  # of thousands, every second
    return Width(*said.pop()) if len(said) == 1 else None


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The engines of a pool that have one width, and their traffic: what one plan is made for.

    engines: members by rank; windows: by phase
    """

    pool: str
    model: ModelShape
    ranks: int
    slots: int
    engines: dict[str, list[Member]]
    windows: dict[str, Window]

    @property
    def members(self) -> list[Member]:
        return [member for members in self.engines.values() for member in members]

    @property
    def live(self) -> frozenset[str]:
        """What all engines can change while they serve."""
        workers = [member.registration.worker for member in self.members]
        can = {
            "width": all(worker.can_resize for worker in workers),
            "redundancy": all(worker.can_replicate for worker in workers),
        }
        return frozenset(what for what, is_so in can.items() if is_so)

    def tokens(self, phase: str) -> int:
        """In the window; ``mixed`` is all phases."""
        windows = list(self.windows.items())
        return sum(window.tokens for name, window in windows if phase in (name, "mixed"))

    def pace(self, phase: str) -> Pace | None:
        """How steps went in the window; None if nobody measured."""
        windows = list(self.windows.items())
        return merged((name, window.pace) for name, window in windows if phase in (name, "mixed"))

    def since_s(self, phase: str) -> float | None:
        """When the oldest of what is in the window may have been counted; None if nothing was."""
        windows = list(self.windows.items())
        begun = [window.since_s for name, window in windows if phase in (name, "mixed")]
        return min((one for one in begun if one is not None), default=None)

    def profile(self, phase: str, now_s: float) -> Profile | None:
        """Of the window; ``mixed`` is all phases. None if there was no traffic."""
        found = []
        for name, window in self.windows.items():
            window.roll(now_s)
            if phase in (name, "mixed"):
                found.append(window.profile(name, self.model.top_k, now_s))
        known = [profile for profile in found if profile is not None]
        if not known:
            return None
        total = merge(known)
        return replace(total, window_s=(total.window_s or 0.0) * len(self.engines))


@dataclass(slots=True)
class Pool:
    """Engines of one model. slots, windows: by ranks of the engines; windows then by phase;
    missed_before: pushes of workers that are gone, so that their sum never falls; teller: engine
    and worker of which affinity is asked"""

    name: str
    model: ModelShape
    members: dict[tuple[str, str], Member] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    windows: dict[int, dict[str, Window]] = field(default_factory=dict)
    missed_before: int = 0
    teller: tuple[str, str] = NOBODY

    @property
    def missed(self) -> int:
        return self.missed_before + sum(one.missed for one in list(self.members.values()))

    def lose(self, key: tuple[str, str]) -> None:
        """A worker that is gone."""
        self.missed_before += self.members.pop(key).missed

    @property
    def engines(self) -> dict[str, list[Member]]:
        """By name, in order; members by rank."""
        found: dict[str, list[Member]] = {}
        for key in sorted(self.members):
            found.setdefault(key[0], []).append(self.members[key])
        for members in found.values():
            members.sort(key=lambda member: member.registration.worker.ep_rank)
        return found

    @property
    def groups(self) -> dict[int, Group]:
        """By ranks, those of most engines first. An engine that is being resized is in none."""
        found: dict[int, Group] = {}
        for engine, members in self.engines.items():
            if (width := width_of(members)) is None:
                continue
            ranks, slots = width.ranks, width.slots
            if ranks not in found:
                windows = self.windows.get(ranks, {})
                found[ranks] = Group(self.name, self.model, ranks, slots, {}, windows)
            found[ranks].engines[engine] = [
                member for member in members if member.registration.worker.ep_size == ranks
            ]
        order = sorted(found, key=lambda ranks: (-len(found[ranks].engines), ranks))
        return {ranks: found[ranks] for ranks in order}

    def group(self, ranks: int = 0) -> Group | None:
        """0: of most engines"""
        groups = self.groups
        return groups.get(ranks) if ranks else next(iter(groups.values()), None)

    def forget_widths(self) -> None:
        """Slots and traffic of widths that nobody has any more."""
        there = {member.registration.worker.ep_size for member in self.members.values()}
        for by_ranks in (self.slots, self.windows):
            for ranks in by_ranks.keys() - there:
                del by_ranks[ranks]
