"""What is open is known without reading what has ended."""

from hypothesis import given
from hypothesis import strategies as st

from controller.clock import ManualClock
from controller.ledger.ledger import Ledger, Record
from controller.ledger.watched import OPEN, Journal

STEPS = st.lists(st.tuples(st.sampled_from(["plan", "operation", "decision"]),
                           st.sampled_from("ab"), st.sampled_from("123"), st.booleans()),
                 max_size=30)  # fmt: skip


@given(STEPS, STEPS)
def test_what_is_open_is_what_the_ledger_says(
    before: list[tuple[str, str, str, bool]], after: list[tuple[str, str, str, bool]]
) -> None:
    """Written before this controller began, or by it. An id keeps its pool."""
    ledger = Ledger(None)

    def write(journal: Journal, kind: str, pool: str, number: str, final: bool) -> None:
        id = f"{pool}-{number}"
        last = ledger.get(kind, id)
        first = Record(kind, id, 1, 0.0, "", {}, pool, final)
        journal.put(first if last is None else last.next(0.0, "", final=final))

    for steps in (before, after):
        journal = Journal(ledger, ManualClock())
        for step in steps:
            write(journal, *step)
    for kind in OPEN:
        assert journal.open(kind) == ledger.newest(kind, final=False)
        for pool in "ab":
            assert journal.open(kind, pool) == ledger.newest(kind, pool=pool, final=False)
    ledger.close()
