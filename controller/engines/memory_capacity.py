"""GPUs that are there, or come after a while: for simulations, and for hosts of one machine."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.ports import Stock
from placer.clock import Clock


@dataclass(frozen=True, slots=True)
class _Coming:
    due_s: float
    gpus: int


class MemoryCapacity:
    """limit: of all pools; comes_s: that a GPU takes from being asked for to being available; has:
    what pools have from the beginning, unasked"""

    def __init__(
        self, clock: Clock, limit: int, comes_s: float = 0.0, has: Mapping[str, int] | None = None
    ) -> None:
        self.clock, self.limit, self.comes_s = clock, limit, comes_s
        self._stocks = {
            pool: Stock(allocated=gpus, available=gpus) for pool, gpus in (has or {}).items()
        }
        self._coming: dict[str, _Coming] = {}

    async def ask(self, pool: str, gpus: int) -> None:
        now = self._now(pool)
        if gpus <= now.desired:
            return
        others = sum(one.allocated for name, one in self._stocks.items() if name != pool)
        allocated = max(min(gpus, self.limit - others), now.allocated)
        self._stocks[pool] = replace(now, desired=gpus, allocated=allocated)
        self._coming[pool] = _Coming(self.clock.monotonic() + self.comes_s, allocated)

    def asked(self, pool: str) -> int:
        return self._stocks.get(pool, Stock()).desired

    async def ready(self, pool: str) -> Stock:
        return self._now(pool)

    async def release(self, pool: str, gpus: int) -> None:
        now = self._now(pool)
        kept = max(gpus, now.active)
        self._stocks[pool] = replace(
            now,
            desired=gpus,
            allocated=min(now.allocated, kept),
            available=min(now.available, kept),
        )
        self._coming.pop(pool, None)

    def serve(self, pool: str, active: int, traffic: int) -> None:
        """An engine has joined so many, and is sent requests on those."""
        self._stocks[pool] = replace(self._now(pool), active=active, traffic=traffic)

    def _now(self, pool: str) -> Stock:
        stock = self._stocks.get(pool, Stock())
        coming = self._coming.get(pool)
        if coming is not None and coming.due_s <= self.clock.monotonic():
            del self._coming[pool]
            stock = self._stocks[pool] = replace(stock, available=coming.gpus)
        return stock
