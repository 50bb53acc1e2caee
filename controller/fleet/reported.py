"""GPUs of pools whose pods somebody else starts, ends and reports, such as an operator of
Kubernetes."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from controller.fleet.pools import Member, Width, width_of
from controller.fleet.workers import Fleet
from controller.ledger.ledger import LedgerError, Record
from controller.ledger.records import form_of
from controller.ledger.watched import WatchedLedger
from controller.ports import Stock

KIND = "capacity"


@dataclass(frozen=True, slots=True)
class Report:
    """A pool's GPUs. desired: that were asked for; allocated: that its pods have or will have;
    pods: those that are ready, by uid, and the GPUs of each"""

    desired: int = 0
    allocated: int = 0
    pods: Mapping[str, int] = field(default_factory=dict)


FORM = form_of(Report)


class ReportedCapacity:
    """What was reported, and asked for, of each pool. The ledger has it.

    Of a pool of which nobody reports, what is asked for is taken to be there: whoever widens an
    engine there has seen to its GPUs.
    """

    def __init__(self, ledger: WatchedLedger, fleet: Fleet) -> None:
        self._ledger, self._fleet = ledger, fleet
        self._asked: dict[str, int] = {}  # of pools of which nobody reports
        self._reports: dict[str, Report] = {}
        try:
            self._reports |= {one.id: one.value for one in ledger.records.newest(KIND)}
        except LedgerError:
            return  # the loop says so; who reports does it again

    def report(self, pool: str, allocated: int, pods: Mapping[str, int]) -> None:
        """All of it, as it is now."""
        self._keep(pool, replace(self._of(pool), allocated=allocated, pods=dict(pods)))

    def add(self, pool: str, pods: Mapping[str, int]) -> None:
        """Pods that are ready besides."""
        known = self._of(pool)
        there = {**known.pods, **pods}
        allocated = max(known.allocated, sum(there.values()))
        self._keep(pool, replace(known, allocated=allocated, pods=there))

    async def ask(self, pool: str, gpus: int) -> None:
        self._want(pool, max(gpus, self.stock(pool).desired))

    async def release(self, pool: str, gpus: int) -> None:
        self._want(pool, gpus)

    def asked(self, pool: str) -> int:
        return self._of(pool).desired

    async def ready(self, pool: str) -> Stock:
        return self.stock(pool)

    def stock(self, pool: str) -> Stock:
        active = traffic = 0
        for members in self._engines(pool).values():
            width = width_of(members)
            serving = self._serving(members, width)
            active += serving
            traffic += serving if width is not None and serving == width.ranks else 0
        known = self._reports.get(pool)
        if known is None:
            gpus = max(self._asked.get(pool, active), active)
            return Stock(self._asked.get(pool, active), gpus, gpus, active, traffic)
        available = max(sum(known.pods.values()), active)
        desired = known.desired or active
        return Stock(desired, max(known.allocated, active), available, active, traffic)

    def releasable(self, pool: str) -> list[str]:
        """Pods that no engine needs: none while an engine is not whole, or while a worker does not
        say where it runs. What is asked for stays."""
        engines = self._engines(pool)
        members = [one for them in engines.values() for one in them if self._fleet.is_heard(one)]
        used = {member.registration.pod.uid for member in members}
        if not members or "" in used or not all(map(self._is_whole, engines.values())):
            return []
        known, found = self._of(pool), list[str]()
        left, desired = sum(known.pods.values()), self.stock(pool).desired
        for uid, gpus in known.pods.items():
            if uid not in used and left - gpus >= desired:
                found.append(uid)
                left -= gpus
        return found

    def _of(self, pool: str) -> Report:
        return self._reports.get(pool, Report(self._asked.get(pool, 0)))

    def _want(self, pool: str, gpus: int) -> None:
        if pool in self._reports:
            self._keep(pool, replace(self._reports[pool], desired=gpus))
        else:
            self._asked[pool] = gpus

    def _keep(self, pool: str, report: Report) -> None:
        if report == self._reports.get(pool):
            return
        version = self._ledger.records.version(KIND, pool) + 1
        told = (self._ledger.clock.now(), "", report, pool)
        self._ledger.put(Record(KIND, pool, version, *told))
        self._reports[pool] = report
        self._asked.pop(pool, None)

    def _engines(self, pool: str) -> Mapping[str, list[Member]]:
        found = self._fleet.pools.get(pool)
        return {} if found is None else found.engines

    def _serving(self, members: Iterable[Member], width: Width | None) -> int:
        """How many are heard, of the engine's width."""
        return sum(
            width is not None
            and self._fleet.is_heard(one)
            and one.registration.worker.ep_size == width.ranks
            for one in members
        )

    def _is_whole(self, members: Collection[Member]) -> bool:
        width = width_of(members)
        return width is not None and self._serving(members, width) == width.ranks
