"""What operations came to, since this controller started."""

from collections import Counter

from controller.changes.operations import Operation


class Totals:
    """Sums over operations that ended, by pool: how many by phase, bytes copied, slots moved; and
    the longest pause of the last one."""

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, ...]] = Counter()
        self.copied_bytes: Counter[tuple[str, ...]] = Counter()
        self.moved: Counter[tuple[str, ...]] = Counter()
        self.longest_pause_s: dict[str, float] = {}

    def count(self, operation: Operation) -> None:
        pool = operation.pool
        self.ended[pool, operation.phase] += 1
        self.copied_bytes[pool,] += operation.copied_bytes
        self.moved[pool,] += operation.moved
        self.longest_pause_s[pool] = operation.longest_pause_s
