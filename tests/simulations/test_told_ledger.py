"""What a run's results are told from."""

from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.policies.policy import Kept
from placer.virtual_clock import VirtualClock
from simulations.fleet import ToldLedger


def left_of(records: Ledger, count: int, keep: int) -> int:
    """So many decisions, once those beyond ``keep`` are forgotten."""
    ledger = WatchedLedger(records, VirtualClock())
    for number in range(count):
        kept = Kept("hold", "it is even", 0, 1.0, "rebalance", 4)
        ledger.write("decision", f"decision-{number}", "it is even", kept, pool="chat")
    ledger.prune("decision", keep, 1e9)
    return len(records.newest("decision"))


def test_decisions_of_weeks_are_told_of_which_a_controller_keeps_the_last() -> None:
    assert left_of(Ledger(None, FORMS), 9, keep=3) == 3
    assert left_of(ToldLedger(None, FORMS), 9, keep=3) == 9
