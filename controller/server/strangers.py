"""Those who call in vain, with no known token or what cannot be answered, and those who send much:
they are slowed down, and the first told of in sums."""

import asyncio
import logging
from collections import Counter
from urllib.parse import unquote

from placer.clock import Clock

SPACING_S = 0.05  # between two answers to one address
BYTES_PER_S = 10e6  # of what is large or in vain from one address; agents copy 2 MB/s
SLOWEST_S = 3.0  # of a small answer: agents wait 5 s, and are to hear what is wrong
PERIOD_S = 60.0  # between two lines in the log
ADDRESSES = 1000  # that are told apart

log = logging.getLogger("placer.controller")


class Spacing:
    """Answers to an address, with SPACING_S between them however fast it asks, and longer after
    what was large: nobody else waits for its bytes for long."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._free_s: dict[str, float] = {}  # when the next answer to an address is due

    async def turn(self, address: str, size: int = 0) -> None:
        """Until the answer to this one is due. address: or who else is told apart;
        size: bytes of the request"""
        await self._clock.sleep(self.delay_s(address, self._clock.monotonic(), size))

    def delay_s(self, address: str, now_s: float, size: int = 0) -> float:
        """How long the next answer waits: for those before it, but no longer than SLOWEST_S or than
        its own bytes take."""
        if len(self._free_s) >= ADDRESSES and address not in self._free_s:
            self._free_s = {one: due_s for one, due_s in self._free_s.items() if due_s > now_s}
            address = address if len(self._free_s) < ADDRESSES else "others"
        taken_s = size / BYTES_PER_S
        longest_s = max(SLOWEST_S, taken_s)
        due_s = min(max(now_s, self._free_s.get(address, now_s)), now_s + longest_s)
        self._free_s[address] = due_s + SPACING_S + taken_s
        return due_s - now_s


def address_of(peer: str) -> str:
    """peer: as gRPC says it, ``ipv4:10.0.0.7:40120``"""
    return unquote(peer.rpartition(":")[0].partition(":")[2])


class Strangers:
    """Calls that show no known token, by address: answered the later the more of them come, and
    told to the log in sums. Other calls do not wait for them."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._spacing = clock, Spacing(clock)
        self._counts: Counter[str] = Counter()
        self._telling: asyncio.Task[None] | None = None

    async def wait(self, peer: str) -> None:
        """Until the answer to this one is due."""
        address = address_of(peer)
        if len(self._counts) >= ADDRESSES and address not in self._counts:
            address = "others"
        self._counts[address] += 1
        if self._telling is None or self._telling.done():
            log.warning("placer: a call from %s shows no known token", address)
            self._counts.clear()
            self._telling = asyncio.create_task(self._tell())
        await self._spacing.turn(address)

    async def _tell(self) -> None:
        """Until nobody calls any more."""
        while True:
            await self._clock.sleep(PERIOD_S)
            counts, self._counts = self._counts, Counter()
            if not counts:
                return
            most = ", ".join(f"{address} ({count:,})" for address, count in counts.most_common(5))
            rest = f" and {len(counts) - 5:,} more addresses" if len(counts) > 5 else ""
            log.warning(
                "placer: %s more calls in %g s show no known token, from %s%s",
                f"{counts.total():,}", PERIOD_S, most, rest,
            )  # fmt: skip
