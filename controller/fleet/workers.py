"""What is known of the fleet: who registered, what they pushed, how they stand. In memory: agents
say all of it again within seconds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controller.fleet.windows import Delta, Window
from placer.clock import Clock
from placer.errors import PlacerError, RoutingError
from placer.model import ModelShape
from placer.names import few
from placer.pace import Pace, merged
from placer.profile import Profile, merge
from placer.worker import Worker

SILENT_S = 60.0  # a worker that was not seen for so long is gone: agents pause up to 20 s
FORGOTTEN_S = 3600.0
AHEAD_S = 60.0  # that a worker's clock may be, and what it says of its beginning still counts
WORKERS = 20_000  # at most
NAME = 200  # characters of a pool's, an engine's or a worker's, at most


class FleetError(PlacerError):
    """What the fleet, as it is now, does not allow."""


class UnknownError(FleetError):
    """A worker, engine, pool or plan that is not there."""


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
    epoch, digest: of the plan that was applied last, as read back from the engine's map
    """

    id: WorkerId
    worker: Worker
    shape: ModelShape | None = None
    actor: str = ""
    epoch: int = 0
    digest: str = ""
    refused_epoch: int = 0
    refused: str = ""
    tokens: int = 0
    dropped: int = 0
    trouble: str = ""

    @property
    def model(self) -> ModelShape:
        worker = self.worker
        if self.shape is not None:
            return self.shape
        name = worker.model.rsplit("/", 1)[-1]
        sizes = (worker.layers, worker.experts, worker.top_k, 4096, 2048)
        return ModelShape(name, *sizes, sized=False)


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


def kinds(members: Iterable[Member]) -> list[Member]:
    """The first of those that differ by name and rank alone: what is asked of one is of all."""
    found: dict[Worker, Member] = {}
    for member in members:
        found.setdefault(replace(member.registration.worker, name="", ep_rank=0), member)
    return list(found.values())


@dataclass(slots=True)
class Pool:
    """Engines of one model and width. Windows by phase."""

    name: str
    model: ModelShape
    ranks: int
    slots: int
    members: dict[tuple[str, str], Member] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)

    @property
    def engines(self) -> dict[str, list[Member]]:
        """By name, in order; members by rank."""
        found: dict[str, list[Member]] = {}
        for key in sorted(self.members):
            found.setdefault(key[0], []).append(self.members[key])
        for members in found.values():
            members.sort(key=lambda member: member.registration.worker.ep_rank)
        return found

    def tokens(self, phase: str) -> int:
        """In the window; ``mixed`` is all phases."""
        windows = list(self.windows.items())
        return sum(window.tokens for name, window in windows if phase in (name, "mixed"))

    def pace(self, phase: str) -> Pace | None:
        """How steps went in the window; None if nobody measured."""
        windows = list(self.windows.items())
        return merged((name, window.pace) for name, window in windows if phase in (name, "mixed"))

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


class Fleet:
    """The pools that are there, by their workers. window_s: of a pool"""

    def __init__(self, window_s: Callable[[str], float], clock: Clock) -> None:
        self.pools: dict[str, Pool] = {}
        self.clock, self._window_s = clock, window_s

    def pool(self, name: str) -> Pool:
        if name not in self.pools:
            there = few(self.pools) or "none yet: does PLACER_AGENT name this address?"
            raise UnknownError(f"no pool {name[:NAME]!r}: there is {there}")
        return self.pools[name]

    def engine(self, pool: str, engine: str) -> list[Member]:
        """Its members, by rank."""
        found = self.pool(pool).engines
        if engine not in found:
            raise UnknownError(f"no engine {engine[:NAME]!r} in {pool}: there is {few(found)}")
        return found[engine]

    def silent_s(self, member: Member) -> float:
        """Since it was seen."""
        return self.clock.monotonic() - member.last_seen_s

    def is_heard(self, member: Member) -> bool:
        return self.silent_s(member) < SILENT_S

    def register(self, registration: Registration) -> int:
        """The newest push of this incarnation. Raises FleetError for whom the pool has no place."""
        key = registration.id.engine, registration.id.worker
        known = self.pools.get(registration.id.pool)
        if (known is None or key not in known.members) and self._workers >= WORKERS:
            raise FleetError(f"{WORKERS} workers are registered: no place for more")
        pool, now_s = self._place(registration), self.clock.monotonic()
        member = pool.members.setdefault(key, Member(registration, now_s))
        if registration.id.incarnation != member.registration.id.incarnation:
            if self.is_heard(member):
                _check_later(registration.id, member, self.clock.now())
            member.sequence = 0
        member.registration, member.last_seen_s = registration, now_s
        return member.sequence

    def push(
        self,
        id: WorkerId,
        sequence: int,
        deltas: Sequence[Delta],
        paces: Mapping[str, Pace] | None = None,
    ) -> None:
        """Count a push, once. Raises FleetError for a worker that must register first, and
        RoutingError for counts that cannot be. paces: how steps went, by phase"""
        member = self.member(id)
        if sequence < 1:
            raise RoutingError(f"push {sequence}: they are counted from 1")
        if sequence <= member.sequence:
            return
        pool = self.pools[id.pool]
        model = pool.model
        for delta in deltas:
            delta.check(model.layers, model.experts, model.top_k)
        paces, now_s = paces or {}, self.clock.monotonic()
        for phase in (*(delta.phase for delta in deltas), *paces):
            if phase not in pool.windows:
                pool.windows[phase] = Window(self._window_s(pool.name), now_s)
        for delta in deltas:
            pool.windows[delta.phase].add(delta, now_s)
        for phase, pace in paces.items():
            pool.windows[phase].pass_steps(pace, now_s)
        if member.sequence:  # those before the first were acknowledged by another controller
            member.lost += sequence - member.sequence - 1
        member.sequence, member.last_seen_s = sequence, now_s

    def member(self, id: WorkerId) -> Member:
        """Raises UnknownError for a worker that must register first."""
        pool = self.pools.get(id.pool)
        member = pool.members.get((id.engine, id.worker)) if pool else None
        if member is None or member.registration.id.incarnation != id.incarnation:
            who = f"{id.worker[:NAME]} of {id.engine[:NAME]} in {id.pool[:NAME]}"
            raise UnknownError(f"{who} must register first")
        return member

    def forget(self) -> None:
        """Workers and pools that were not seen for long."""
        for pool in list(self.pools.values()):
            for key, member in list(pool.members.items()):
                if self.silent_s(member) >= FORGOTTEN_S:
                    del pool.members[key]
            if not pool.members:
                del self.pools[pool.name]

    @property
    def _workers(self) -> int:
        return sum(len(pool.members) for pool in self.pools.values())

    def _place(self, registration: Registration) -> Pool:
        """Its pool, which the first one defines, as long as one of them is there."""
        worker, id, model = registration.worker, registration.id, registration.model
        for what, text in (("pool", id.pool), ("engine", id.engine), ("worker", id.worker)):
            if not 0 < len(text) <= NAME or not text.isprintable():
                raise FleetError(
                    f"{what} {text[:50]!r}: a name has 1 to {NAME} printable characters"
                )
        if worker.slots < worker.experts or worker.ep_size < 1 or worker.slots % worker.ep_size:
            raise FleetError(f"{worker.slots} slots on {worker.ep_size} ranks: they must divide")
        pool = self.pools.get(id.pool)
        asked = (
            registration.model.layers,
            worker.experts,
            worker.top_k,
            worker.ep_size,
            worker.slots,
        )
        if pool is not None:
            there = pool.model
            here = (there.layers, there.experts, there.top_k, pool.ranks, pool.slots)
            if asked == here:
                return pool
            if any(map(self.is_heard, pool.members.values())):
                words = "{} layers x {} experts, top-{}, on {} ranks in {} slots"
                raise FleetError(
                    f"pool {id.pool} has {words.format(*here)} and {id.worker} of "
                    f"{id.engine} {words.format(*asked)}: give it another PLACER_POOL"
                )
        self.pools[id.pool] = Pool(id.pool, model, worker.ep_size, worker.slots)
        return self.pools[id.pool]


def _check_later(id: WorkerId, member: Member, now: float) -> None:
    """Raises FleetError for a life of a worker that is not later than the one that is heard.

    Workers' clocks say which is, and some are wrong. So who says to have begun in the future is
    later than nobody who did not. now: unix seconds
    """
    latest = (now + AHEAD_S) * 1e9
    new, known = (
        (one <= latest, one) for one in (id.incarnation, member.registration.id.incarnation)
    )
    if new > known:
        return
    if new[0] or not known[0]:
        raise FleetError(f"{id.worker} of {id.engine} was started again since")
    raise FleetError(
        f"{id.worker} of {id.engine} began {id.incarnation / 1e9 - now:,.0f} s from now, as it "
        "says, and another of that name is heard: set its host's clock"
    )
