"""A controller that was killed knows again who was there and what was counted, once."""

import json
from dataclasses import asdict, replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest

from controller.fleet import snapshots
from controller.fleet.pools import Registration, WorkerId
from controller.fleet.windows import Delta
from controller.fleet.workers import Fleet
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from placer.pace import Pace
from placer.virtual_clock import VirtualClock
from tests.agent.workers import a_worker
from tests.controller.tiny_pool import at, only

SPAN_S = 100.0
NOW = 1e9
BOOTED_S = 7_000.0
ID = WorkerId("pool", "engine", "worker-0", incarnation=7)


def a_fleet(clock: VirtualClock | None = None) -> Fleet:
    return Fleet(lambda _: SPAN_S, clock or VirtualClock(NOW))


def counts(hot: int) -> Delta:
    """One token a layer, of 2 layers x 4 experts."""
    load = np.zeros((2, 4), dtype="<u4")
    load[:, hot] = 1
    return Delta("decode", top_k=1, tokens=1, sequences=1, load=load)


def killed_and_back(fleet: Fleet) -> Fleet:
    clock = fleet.clock
    ledger = WatchedLedger(Ledger(None, FORMS), clock)
    for pool in fleet.pools.values():
        snapshots.take(ledger, pool)
        snapshots.take(ledger, pool)  # as every look does
    # Another process, whose monotonic clock began at another time.
    later = VirtualClock(clock.now() - BOOTED_S)
    later.advance(BOOTED_S)
    again = a_fleet(later)
    snapshots.recall(ledger, again, lambda _: SPAN_S)
    ledger.records.close()
    return again


def served() -> Fleet:
    """One push in each half of the window."""
    fleet = a_fleet()
    at(fleet, 0.0).register(Registration(ID, a_worker()))
    at(fleet, 10.0).push(ID, 1, [counts(hot=0)], paces={"decode": Pace(3, 1.0, 10.0)})
    at(fleet, 60.0).push(ID, 2, [counts(hot=3)])
    return fleet


def test_the_traffic_is_what_it_was() -> None:
    for now_s in (60.0, 105.0, 155.0):  # both halves, then the later one, then half of that
        before = only(served().pool("pool")).profile("mixed", now_s)
        again = only(killed_and_back(served()).pool("pool"))
        after = again.profile("mixed", now_s - 60.0 + BOOTED_S)
        assert before is not None
        assert after is not None
        assert before.load.tolist() == after.load.tolist()
        assert (before.tokens, before.window_s) == (after.tokens, after.window_s)
        assert before.pace == after.pace == (Pace(3, 1.0, 10.0) if now_s < 110.0 else None)


def test_nothing_is_counted_twice() -> None:
    again = killed_and_back(served())
    again.push(ID, 2, [counts(hot=3)])  # whose acknowledgement was lost
    again.push(ID, 3, [counts(hot=3)])
    profile = only(again.pool("pool")).profile("decode", BOOTED_S)
    assert profile is not None
    assert profile.load.tolist() == [[1, 0, 0, 2]] * 2
    assert again.member(ID).lost == 0


def test_workers_are_known_with_all_that_they_said() -> None:
    again = killed_and_back(served())
    member = again.member(ID)
    assert member.registration == Registration(ID, a_worker())
    assert (member.sequence, member.last_seen_s) == (2, BOOTED_S)


def test_a_pool_without_traffic_has_its_workers() -> None:
    fleet = a_fleet()
    fleet.register(Registration(ID, a_worker()))
    again = killed_and_back(fleet)
    assert list(again.pool("pool").engines) == ["engine"]
    assert only(again.pool("pool")).profile("mixed", BOOTED_S) is None


def whole(ledger: WatchedLedger, blob: bytes = b"", **body: Any) -> None:
    """A snapshot like that of ``served``, but for what is given."""
    fleet = served()
    snapshots.take(ledger, fleet.pool("pool"))
    last, kept = ledger.records.get("snapshot", "pool"), ledger.records.blob("snapshot", "pool")
    assert last is not None
    assert kept is not None
    text = json.dumps({**json.loads(last.text), **body})
    ledger.records._connection.execute(
        "UPDATE records SET body = ?, blob = ?", (text, blob or kept)
    )


def a_file(load: Any) -> bytes:
    """Of two halves of a window."""
    file = BytesIO()
    np.savez(file, load, load)
    return file.getvalue()


MEMBER = {"registration": {}, "last_seen_s": 0.0, "sequence": 1, "lost": 0}
BROKEN: dict[str, dict[str, Any]] = {
    "cut short": {"blob": a_file(np.ones((2, 4), dtype=int))[:300]},
    "no file": {"blob": b"load"},
    "half a window": {"windows": [{"phase": "decode"}]},
    "a window that is not there": {"blob": a_file(np.ones((2, 4), dtype=int)), "windows": [
        {"phase": "decode", "begun_s": 0.0, "tokens": 1, "sequences": 1, "pace": None}] * 3},
    "another model's counts": {"blob": a_file(np.ones((2, 5), dtype=int))},
    "shares": {"blob": a_file(np.ones((2, 4)))},
    "fewer than none": {"blob": a_file(-np.ones((2, 4), dtype=int))},
    "objects": {"blob": a_file(np.array([[None]]))},
    "no time": {"windows": [
        {"phase": "decode", "begun_s": "noon", "tokens": 1, "sequences": 1}] * 2},
    "another form of members": {"members": [MEMBER]},
    "no members": {"members": {"registration": 1}},
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_snapshot_that_cannot_be_read_is_left_out_and_written_over(
    broken: dict[str, Any],
) -> None:
    """The others are read, and of this one nothing is."""
    ledger = WatchedLedger(Ledger(None, FORMS), VirtualClock(NOW))
    whole(ledger, **broken)
    other = a_fleet()
    other.register(Registration(replace(ID, pool="another"), a_worker()))
    snapshots.take(ledger, other.pool("another"))
    again = a_fleet()
    snapshots.recall(ledger, again, lambda _: SPAN_S)
    assert list(again.pools) == ["another"]
    assert [(one.kind, one.id) for one in ledger.records.left_out()] == [("snapshot", "pool")]
    snapshots.take(ledger, served().pool("pool"))
    assert ledger.records.left_out() == []
    again = a_fleet()
    snapshots.recall(ledger, again, lambda _: SPAN_S)
    assert sorted(again.pools) == ["another", "pool"]


def test_a_snapshot_with_another_pools_worker_is_left_out() -> None:
    ledger = WatchedLedger(Ledger(None, FORMS), VirtualClock(NOW))
    registration = asdict(Registration(replace(ID, pool="another"), a_worker()))
    whole(ledger, members=[{**MEMBER, "registration": registration}])
    again = a_fleet()
    snapshots.recall(ledger, again, lambda _: SPAN_S)
    assert again.pools == {}


def test_a_first_controller_knows_nobody() -> None:
    assert killed_and_back(a_fleet()).pools == {}
