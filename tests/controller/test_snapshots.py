"""A controller that was killed knows again who was there and what was counted, once."""

import numpy as np

from controller import snapshots
from controller.clock import ManualClock
from controller.fleet import Fleet, Registration, WorkerId
from controller.journal import Journal
from controller.store import Ledger
from controller.windows import Delta
from placer.pace import Pace
from tests.agent.builders import a_worker

SPAN_S = 100.0
ID = WorkerId("pool", "engine", "worker-0", incarnation=7)


def a_fleet() -> Fleet:
    return Fleet(lambda _: SPAN_S)


def counts(hot: int) -> Delta:
    """One token a layer, of 2 layers x 4 experts."""
    load = np.zeros((2, 4), dtype="<u4")
    load[:, hot] = 1
    return Delta("decode", top_k=1, tokens=1, sequences=1, load=load)


def killed_and_back(fleet: Fleet) -> Fleet:
    journal = Journal(Ledger(None), ManualClock())
    for pool in fleet.pools.values():
        snapshots.take(journal, pool)
        snapshots.take(journal, pool)  # as every look does
    again = a_fleet()
    snapshots.recall(journal, again, lambda _: SPAN_S)
    journal.ledger.close()
    return again


def served() -> Fleet:
    """One push in each half of the window."""
    fleet = a_fleet()
    fleet.register(Registration(ID, a_worker()), now_s=0.0)
    fleet.push(ID, 1, [counts(hot=0)], now_s=10.0, paces={"decode": Pace(3, 1.0, 10.0)})
    fleet.push(ID, 2, [counts(hot=3)], now_s=60.0)
    return fleet


def test_the_traffic_is_what_it_was() -> None:
    for now_s in (60.0, 105.0, 155.0):  # both halves, then the later one, then half of that
        before = served().pool("pool").profile("mixed", now_s)
        after = killed_and_back(served()).pool("pool").profile("mixed", now_s)
        assert before is not None
        assert after is not None
        assert before.load.tolist() == after.load.tolist()
        assert (before.tokens, before.window_s) == (after.tokens, after.window_s)
        assert before.pace == after.pace == (Pace(3, 1.0, 10.0) if now_s < 110.0 else None)


def test_nothing_is_counted_twice() -> None:
    again = killed_and_back(served())
    again.push(ID, 2, [counts(hot=3)], now_s=61.0)  # whose acknowledgement was lost
    again.push(ID, 3, [counts(hot=3)], now_s=62.0)
    profile = again.pool("pool").profile("decode", 62.0)
    assert profile is not None
    assert profile.load.tolist() == [[1, 0, 0, 2]] * 2
    assert again.member(ID).lost == 0


def test_workers_are_known_with_all_that_they_said() -> None:
    again = killed_and_back(served())
    member = again.member(ID)
    assert member.said == Registration(ID, a_worker())
    assert (member.sequence, member.heard_s) == (2, 60.0)


def test_a_pool_without_traffic_has_its_workers() -> None:
    fleet = a_fleet()
    fleet.register(Registration(ID, a_worker()), now_s=0.0)
    again = killed_and_back(fleet)
    assert list(again.pool("pool").engines) == ["engine"]
    assert again.pool("pool").profile("mixed", 1.0) is None


def test_a_first_controller_knows_nobody() -> None:
    assert killed_and_back(a_fleet()).pools == {}
