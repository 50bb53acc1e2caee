import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.store import Conflict, Ledger, LedgerError, LedgerFull, Record


def a_plan(version: int = 1, id: str = "p1", **changes: Any) -> Record:
    plan = Record("plan", id, version, 1_000.0 + version, "load moved", {"epoch": 7}, "pool-a")
    return replace(plan, **changes)


def a_snapshot(version: int, **changes: Any) -> Record:
    return Record("snapshot", "worker-0", version, 1_000.0, "pushed", {}, **changes)


@pytest.fixture(params=["in a file", "in memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "ledger.db" if request.param == "in a file" else None)
    yield found
    found.close()


def keys(records: list[Record]) -> list[tuple[str, int]]:
    return [(record.id, record.version) for record in records]


def test_what_is_put_is_read_back(ledger: Ledger) -> None:
    body = {"shape": (2, 3), "by": "ann"}
    written = ledger.put(a_plan(reason="ä 'quoted'", body=body, final=False, blob=b"\0\xff"))
    read = ledger.get("plan", "p1")
    assert (
        read == written == a_plan(reason="ä 'quoted'", body={**body, "shape": [2, 3]}, final=False)
    )
    assert (read.number, read.blob, ledger.blob("plan", "p1")) == (1, b"", b"\0\xff")


def test_what_was_never_put_is_none(ledger: Ledger) -> None:
    ledger.put(a_plan())
    assert ledger.get("plan", "p2") is None
    assert ledger.get("decision", "p1") is None
    assert ledger.blob("plan", "p1") is None
    assert ledger.versions("plan", "p2") == []


def test_a_plan_keeps_its_blob_while_its_state_changes(ledger: Ledger) -> None:
    first = ledger.put(a_plan(blob=b"one"))
    second = ledger.put(first.next(1_010.0, "approved by ann", body={"state": "approved"}))
    ledger.put(second.next(1_020.0, "replaced", blob=b"three"))
    assert [ledger.blob("plan", "p1", version) for version in (1, 2, 3)] == [b"one", None, b"three"]
    assert ledger.blob("plan", "p1") == b"three"
    reasons = [(record.at_s, record.reason) for record in ledger.versions("plan", "p1")]
    assert reasons[1:] == [(1_010.0, "approved by ann"), (1_020.0, "replaced")]


def test_of_two_who_saw_the_same_version_one_wins_and_the_other_is_told(ledger: Ledger) -> None:
    seen = ledger.put(a_plan())
    ledger.put(seen.next(1_001.0, "approved"))
    with pytest.raises(Conflict, match="p1 is at version 2 and not 1: ") as caught:
        ledger.put(seen.next(1_001.0, "rejected"))
    assert (caught.value.expected, caught.value.actual) == (1, 2)
    assert [record.reason for record in ledger.versions("plan", "p1")] == ["load moved", "approved"]


@pytest.mark.parametrize("version", [0, 1, 3])
def test_no_version_is_skipped_or_put_twice(ledger: Ledger, version: int) -> None:
    ledger.put(a_plan(1))
    with pytest.raises(Conflict, match=f"at version 1 and not {version - 1}"):
        ledger.put(a_plan(version))


def test_a_batch_is_written_whole_or_not_at_all(ledger: Ledger) -> None:
    first = ledger.put(a_plan(id="old"))
    with pytest.raises(Conflict):
        ledger.put_all([a_plan(id="new"), first.next(1.0, "won"), first.next(1.0, "lost")])
    assert keys(ledger.history()) == [("old", 1)]
    new = a_plan(id="new")
    written = ledger.put_all([new, new.next(1.0, "done"), first.next(1.0, "won")])
    assert keys(ledger.history()) == [("old", 2), ("new", 2), ("new", 1), ("old", 1)]
    assert list(written) == ledger.history()[2::-1]


def test_threads_that_count_together_lose_no_count(ledger: Ledger) -> None:
    ledger.put(a_plan(body={"count": 0}))

    def add_25() -> None:
        added = 0
        while added < 25:
            seen = ledger.get("plan", "p1")
            assert seen is not None
            try:
                ledger.put(seen.next(0.0, "one more", body={"count": seen.body["count"] + 1}))
                added += 1
            except Conflict:
                continue

    threads = [threading.Thread(target=add_25) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.body["count"] for record in ledger.versions("plan", "p1")] == list(range(101))


def test_newest_are_the_last_written_of_a_kind(ledger: Ledger) -> None:
    ledger.put_all([a_plan(id=name, final=name != "b", pool=name.upper()) for name in "abc"])
    ledger.put_all([a_plan(2, "a", final=False, pool="A"), Record("decision", "d", 1, 0.0, "", {})])
    assert keys(ledger.newest("plan")) == [("a", 2), ("c", 1), ("b", 1)]
    assert keys(ledger.newest("plan", limit=2)) == [("a", 2), ("c", 1)]
    assert keys(ledger.newest("plan", final=False)) == [("a", 2), ("b", 1)]
    assert keys(ledger.newest("plan", final=True)) == [("c", 1)]
    assert keys(ledger.newest("plan", pool="B")) == [("b", 1)]


def test_history_is_of_all_kinds_last_first_page_by_page(ledger: Ledger) -> None:
    ledger.put_all([a_plan(), a_snapshot(1), Record("decision", "d", 1, 5.0, "waits", {})])
    ledger.put_all([a_plan(2), a_snapshot(2), a_plan(id="p2", pool="pool-b")])
    assert keys(ledger.history()) == [("p2", 1), ("p1", 2), ("d", 1), ("p1", 1)]
    page = ledger.history(2)
    assert keys(page) == [("p2", 1), ("p1", 2)]
    assert keys(ledger.history(2, before=page[-1].number)) == [("d", 1), ("p1", 1)]
    assert keys(ledger.history(pool="pool-a")) == [("p1", 2), ("p1", 1)]
    assert keys(ledger.history(1, "pool-a", page[-1].number)) == [("p1", 1)]


def test_of_snapshots_only_the_newest_is_kept(ledger: Ledger) -> None:
    for version in (1, 2, 3):
        ledger.put(a_snapshot(version, blob=bytes([version])))
    assert keys(ledger.versions("snapshot", "worker-0")) == [("worker-0", 3)]
    assert ledger.blob("snapshot", "worker-0") == b"\3"
    with pytest.raises(Conflict, match="at version 3 and not 0"):
        ledger.put(a_snapshot(1))


def test_numbers_are_never_given_twice(ledger: Ledger) -> None:
    seen = [ledger.put(a_snapshot(version)).number for version in (1, 2, 3)]
    assert seen == [1, 2, 3]


def test_what_is_open_is_never_pruned(ledger: Ledger) -> None:
    ledger.put_all([a_plan(id="open", final=False), a_plan(id="reopened"), a_plan(id="closed")])
    ledger.put(a_plan(2, "reopened", final=False))
    ledger.put(a_plan(1, "closed too", final=False))
    ledger.put(a_plan(2, "closed too"))
    assert ledger.prune("plan", keep=0, since_s=2_000.0) == 3
    assert keys(ledger.history()) == [("reopened", 2), ("reopened", 1), ("open", 1)]


def test_the_old_and_those_that_are_too_many_are_pruned(ledger: Ledger) -> None:
    ledger.put_all(
        [a_plan(id=name, at_s=at_s) for name, at_s in zip("abcd", (9, 1, 9, 9), strict=True)]
    )
    ledger.put(Record("decision", "d", 1, 0.0, "another kind", {}))
    assert ledger.prune("plan", keep=3, since_s=0.0) == 1
    assert keys(ledger.newest("plan")) == [("d", 1), ("c", 1), ("b", 1)]
    assert ledger.prune("plan", keep=3, since_s=5.0) == 1
    assert keys(ledger.newest("plan")) == [("d", 1), ("c", 1)]
    assert len(ledger.newest("decision")) == 1


@given(
    puts=st.lists(
        st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(0, 9)), max_size=20
    ),
    keep=st.integers(0, 4),
    since_s=st.integers(0, 9),
)
def test_pruning_is_what_a_plain_reading_says(
    puts: list[tuple[str, bool, int]], keep: int, since_s: int
) -> None:
    newest: dict[str, Record] = {}
    with closing(Ledger(None)) as ledger:
        for name, final, at_s in puts:
            version = newest[name].version + 1 if name in newest else 1
            record = ledger.put(a_plan(version, name, final=final, at_s=at_s))
            newest.pop(name, None)  # so that the last written comes last
            newest[name] = record
        last_first = list(reversed(newest.values()))
        assert ledger.newest("plan") == last_first
        stays = [
            record
            for place, record in enumerate(last_first)
            if not record.final or (place < keep and record.at_s >= since_s)
        ]
        went = ledger.prune("plan", keep, since_s)
        assert ledger.newest("plan") == stays
        assert went == len(puts) - sum(record.version for record in stays)


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": object()}])
def test_a_body_that_is_not_json_is_refused(ledger: Ledger, body: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match=r"plan p1 cannot be put: .*: records are JSON"):
        ledger.put(a_plan(body=body))
    assert ledger.history() == []


def test_a_text_that_is_not_unicode_is_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match=r"plan p1 cannot be put: .*surrogates"):
        ledger.put(a_plan(reason="\udcff"))


def test_a_full_disk_is_told_and_forgiven(ledger: Ledger) -> None:
    kept = ledger.put(a_plan())
    limit = "PRAGMA max_page_count = {}"
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(limit.format(pages + 2))
    for _ in range(3):
        with pytest.raises(LedgerFull, match="is full: free some space; writing then goes on"):
            ledger.put_all([a_plan(id="small"), a_plan(id="large", blob=bytes(100_000))])
        assert ledger.history() == [kept]
    ledger._connection.execute(limit.format(1_000_000))
    ledger.put_all([a_plan(id="small"), a_plan(id="large", blob=bytes(100_000))])
    assert keys(ledger.history()) == [("large", 1), ("small", 1), ("p1", 1)]
