"""What is open is known without reading what has ended."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.ledger.ledger import Ledger, Record
from controller.ledger.watched import OPEN, WatchedLedger
from placer.virtual_clock import VirtualClock

STEPS = st.lists(st.tuples(st.sampled_from(["plan", "operation", "decision"]),
                           st.sampled_from("ab"), st.sampled_from("123"), st.booleans()),
                 max_size=30)  # fmt: skip


@given(STEPS, STEPS)
def test_what_is_open_is_what_the_ledger_says(
    before: list[tuple[str, str, str, bool]], after: list[tuple[str, str, str, bool]]
) -> None:
    """Written before this controller began, or by it. An id keeps its pool."""
    records = Ledger(None)

    def write(ledger: WatchedLedger, kind: str, pool: str, number: str, final: bool) -> None:
        id = f"{pool}-{number}"
        last = records.get(kind, id)
        first: Record[Any] = Record(kind, id, 1, 0.0, "", {}, pool, final)
        ledger.put(first if last is None else last.next(0.0, "", final=final))

    for steps in (before, after):
        ledger = WatchedLedger(records, VirtualClock())
        for step in steps:
            write(ledger, *step)
    for kind in OPEN:
        assert ledger.open(kind) == records.newest(kind, final=False)
        for pool in "ab":
            assert ledger.open(kind, pool) == records.newest(kind, pool=pool, final=False)
    records.close()
