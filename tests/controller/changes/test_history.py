"""What the ledger tells of operations that were."""

import pytest

from controller.changes.history import FEW, History
from controller.changes.operations import Apply, Operation, Phase
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from placer.virtual_clock import VirtualClock


def told(*phases: Phase, width: int = 4) -> History:
    """Of operations that ended so, one after another."""
    ledger = WatchedLedger(Ledger(None, FORMS), VirtualClock())
    for number, phase in enumerate(phases, 1):
        change = Apply(f"plan-{number}", "sha256:there")
        one = Operation(f"op-{number}", "", "chat", change, 1, 0.0, 1, phase=phase, width=width)
        ledger.write("operation", one.id, "because", one, pool="chat", final=True)
    return History(ledger)


@pytest.mark.parametrize("failures", [1, FEW - 1, FEW, FEW + 1, FEW**2 + FEW])
def test_failures_since_the_last_success_are_counted_however_many(failures: int) -> None:
    history = told(Phase.ROLLED_BACK, Phase.SUCCEEDED, *[Phase.ROLLED_BACK] * failures)
    last, failed = history.last_changes("chat")
    assert last is not None
    assert (last.id, failed) == (f"op-{failures + 2}", failures)
    change = history.last_change("chat")
    assert change is not None
    assert change.id == "op-2"


def test_what_was_refused_is_no_change() -> None:
    last, failed = told(Phase.SUCCEEDED, *[Phase.REFUSED] * FEW).last_changes("chat")
    assert last is not None
    assert (last.id, failed) == ("op-1", 0)


def test_of_another_width_there_is_none() -> None:
    history = told(*[Phase.SUCCEEDED] * FEW)
    assert history.last_changes("chat", 8) == (None, 0)
    assert history.last_change("chat", 8) is None
