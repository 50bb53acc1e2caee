"""What is known of the fleet: who registered, what they pushed, how they stand. In memory: agents
say all of it again within seconds."""

from collections.abc import Callable, Mapping, Sequence

from controller.fleet.pools import Member, Pool, Registration, WorkerId
from controller.fleet.windows import Delta, Window
from placer.clock import Clock
from placer.errors import PlacerError, RoutingError
from placer.names import few
from placer.pace import Pace
from placer.worker import GONE_S

FORGOTTEN_S = 3600.0
AHEAD_S = 60.0  # that a worker's clock may be, and what it says of its beginning still counts
WORKERS = 20_000  # at most
NAME = 200  # characters of a pool's, an engine's or a worker's, at most


class FleetError(PlacerError):
    """What the fleet, as it is now, does not allow."""


class UnknownError(FleetError):
    """A worker, engine, pool or plan that is not there."""


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
        return self.silent_s(member) < GONE_S

    def recording(self, pool: str) -> int:
        """Workers that are heard and record."""
        members = self.pool(pool).members.values()
        return sum(one.registration.worker.records and self.is_heard(one) for one in members)

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
            pool.missed_before += member.missed
            member.sequence = member.lost = 0
        resized = member.registration.worker.ep_size != registration.worker.ep_size
        member.registration, member.last_seen_s = registration, now_s
        if resized:
            pool.forget_widths()
        return member.sequence

    def push(
        self,
        id: WorkerId,
        sequence: int,
        deltas: Sequence[Delta],
        paces: Mapping[str, Pace] | None = None,
    ) -> bool:
        """Count a push, once; whether it was news. Raises FleetError for a worker that must
        register first, and RoutingError for counts that cannot be. paces: how steps went, by phase
        """
        member = self.member(id)
        if sequence < 1:
            raise RoutingError(f"push {sequence}: they are counted from 1")
        if sequence <= member.sequence:
            return False
        pool = self.pools[id.pool]
        model = pool.model
        for delta in deltas:
            delta.check(model.layers, model.experts, model.top_k)
        paces, now_s = paces or {}, self.clock.monotonic()
        windows = pool.windows.setdefault(member.registration.worker.ep_size, {})
        for phase in (*(delta.phase for delta in deltas), *paces):
            if phase not in windows:
                windows[phase] = Window(self._window_s(pool.name), now_s)
        for delta in deltas:
            windows[delta.phase].add(delta, now_s)
        for phase, pace in paces.items():
            windows[phase].pass_steps(pace, now_s)
        if member.sequence:  # those before the first were acknowledged by another controller
            member.lost += sequence - member.sequence - 1
        member.sequence, member.last_seen_s = sequence, now_s
        return True

    def member(self, id: WorkerId) -> Member:
        """Raises UnknownError for a worker that must register first."""
        pool = self.pools.get(id.pool)
        member = pool.members.get((id.engine, id.worker)) if pool else None
        if member is None or member.registration.id.incarnation != id.incarnation:
            who = f"{id.worker[:NAME]} of {id.engine[:NAME]} in {id.pool[:NAME]}"
            raise UnknownError(f"{who} must register first")
        return member

    def forget(self) -> None:
        """Workers and pools that were not seen for long, and traffic beyond windows of now."""
        for pool in list(self.pools.values()):
            for windows in pool.windows.values():
                for window in windows.values():
                    window.span_s = self._window_s(pool.name)
            for key, member in list(pool.members.items()):
                if self.silent_s(member) >= FORGOTTEN_S:
                    pool.lose(key)
            pool.forget_widths()
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
        if pool is None:
            pool = self.pools[id.pool] = Pool(id.pool, model)
        there = pool.model.layers, pool.model.experts, pool.model.top_k
        is_other = _dims(registration) != there
        if is_other or pool.slots.get(worker.ep_size, worker.slots) != worker.slots:
            self._make_room(pool, registration, is_other)
            pool = self.pools[id.pool]
        pool.slots[worker.ep_size] = worker.slots
        return pool

    def _make_room(self, pool: Pool, registration: Registration, is_other: bool) -> None:
        """Forget those that are of another model (``is_other``), or of this width with other slots.
        Raises FleetError as long as one of them is heard."""
        id, ranks = registration.id, registration.worker.ep_size
        others = {
            key: member
            for key, member in pool.members.items()
            if is_other or member.registration.worker.ep_size == ranks
        }
        for member in others.values():
            if self.is_heard(member):
                raise FleetError(
                    f"pool {id.pool} has {_sizes(member.registration)} and {id.worker} of "
                    f"{id.engine} {_sizes(registration)}: give it another PLACER_POOL"
                )
        if is_other:
            self.pools[id.pool] = Pool(id.pool, registration.model)
        for key in others:
            pool.lose(key)
        pool.forget_widths()


def _dims(registration: Registration) -> tuple[int, int, int]:
    worker = registration.worker
    return registration.model.layers, worker.experts, worker.top_k


def _sizes(registration: Registration) -> str:
    layers, experts, top_k = _dims(registration)
    worker = registration.worker
    return (
        f"{layers} layers x {experts} experts, top-{top_k}, on {worker.ep_size} ranks in "
        f"{worker.slots} slots"
    )


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
