import re
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.ledger import ledger as ledger_module
from controller.ledger.ledger import (
    Conflict,
    Ledger,
    LedgerError,
    LedgerFull,
    LeftOut,
    Record,
    Unreadable,
)
from controller.ledger.records import Form


def a_plan(version: int = 1, id: str = "p1", **changes: Any) -> Record[Any]:
    plan = Record("plan", id, version, 1_000.0 + version, "load moved", {"epoch": 7}, "pool-a")
    return replace(plan, **changes)


def a_snapshot(version: int, **changes: Any) -> Record[Any]:
    return Record("snapshot", "worker-0", version, 1_000.0, "pushed", {}, **changes)


@pytest.fixture(params=["in a file", "in memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger(tmp_path / "ledger.db" if request.param == "in a file" else None)
    yield found
    found.close()


def keys(records: list[Record[Any]]) -> list[tuple[str, int]]:
    return [(record.id, record.version) for record in records]


def test_what_is_put_is_read_back(ledger: Ledger) -> None:
    value = {"shape": [2, 3], "by": "ann"}
    written = ledger.put(a_plan(reason="ä 'quoted'", value=value, final=False, blob=b"\0\xff"))
    read = ledger.get("plan", "p1")
    assert read == written == a_plan(reason="ä 'quoted'", value=value, final=False)
    assert read.text == written.text == '{"shape": [2, 3], "by": "ann"}'
    assert (read.number, read.blob, ledger.blob("plan", "p1")) == (1, b"", b"\0\xff")


def test_what_was_never_put_is_none(ledger: Ledger) -> None:
    ledger.put(a_plan())
    assert ledger.get("plan", "p2") is None
    assert ledger.get("decision", "p1") is None
    assert ledger.blob("plan", "p1") is None
    assert ledger.versions("plan", "p2") == []


def test_a_plan_keeps_its_blob_while_its_state_changes(ledger: Ledger) -> None:
    first = ledger.put(a_plan(blob=b"one"))
    second = ledger.put(first.next(1_010.0, "approved by ann", value={"state": "approved"}))
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
    ledger.put(a_plan(value={"count": 0}))

    def add_25() -> None:
        added = 0
        while added < 25:
            seen = ledger.get("plan", "p1")
            assert seen is not None
            try:
                ledger.put(seen.next(0.0, "one more", value={"count": seen.value["count"] + 1}))
                added += 1
            except Conflict:
                continue

    threads = [threading.Thread(target=add_25) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.value["count"] for record in ledger.versions("plan", "p1")] == list(range(101))


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


def test_of_what_goes_on_for_long_old_versions_go_and_the_newest_stays(ledger: Ledger) -> None:
    for version, at_s in enumerate((1.0, 2.0, 3.0), 1):
        ledger.put(a_plan(version, "a", at_s=at_s))
    assert ledger.prune("plan", keep=9, since_s=3.0) == 2
    assert keys(ledger.history()) == [("a", 3)]
    assert keys([ledger.put(a_plan(4, "a", at_s=4.0))]) == [("a", 4)]


def test_the_story_of_what_is_open_stays_whole(ledger: Ledger) -> None:
    for version, final in enumerate((True, True, False), 1):
        ledger.put(a_plan(version, "reopened", final=final, at_s=1.0))
    assert ledger.prune("plan", keep=0, since_s=9.0) == 0
    ledger.put(a_plan(4, "reopened", at_s=9.0))
    assert ledger.prune("plan", keep=1, since_s=9.0) == 3


def test_a_blob_is_its_things_as_long_as_that_is_there(ledger: Ledger) -> None:
    """A plan's file comes with its first version."""
    ledger.put(a_plan(1, at_s=1.0, blob=b"file"))
    for version in (2, 3):
        ledger.put(a_plan(version, at_s=float(version)))
    assert ledger.prune("plan", keep=9, since_s=3.0) == 1
    assert (keys(ledger.history()), ledger.blob("plan", "p1")) == ([("p1", 3), ("p1", 1)], b"file")


def test_there_are_only_so_many_earlier_versions_of_a_kind(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of what is open and young; the last that were written stay."""
    monkeypatch.setattr(ledger_module, "EARLIER", 3)
    for version in (1, 2, 3, 4):
        ledger.put_all([a_plan(version, name, final=False) for name in "ab"])
    assert ledger.prune("plan", keep=9, since_s=0.0) == 3
    left = [("b", 4), ("a", 4), ("b", 3), ("a", 3), ("b", 2)]
    assert keys(ledger.history()) == left


@given(
    puts=st.lists(
        st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(0, 9), st.booleans()),
        max_size=20,
    ),
    keep=st.integers(0, 4),
    since_s=st.integers(0, 9),
    most=st.integers(0, 4),
)
def test_pruning_is_what_a_plain_reading_says(
    puts: list[tuple[str, bool, int, bool]], keep: int, since_s: int, most: int
) -> None:
    versions: dict[str, list[tuple[Record[Any], bool]]] = {}
    with closing(Ledger(None)) as ledger, pytest.MonkeyPatch.context() as patched:
        patched.setattr(ledger_module, "EARLIER", most)
        for name, final, at_s, has_blob in puts:
            there = versions.pop(name, [])  # so that the last written comes last
            plan = a_plan(len(there) + 1, name, final=final, at_s=at_s, blob=b"x" * has_blob)
            versions[name] = [*there, (ledger.put(plan), has_blob)]
        last_first = [versions[name] for name in reversed(versions)]
        assert ledger.newest("plan") == [of_it[-1][0] for of_it in last_first]
        left = [
            of_it
            for place, of_it in enumerate(last_first)
            if not of_it[-1][0].final or (place < keep and of_it[-1][0].at_s >= since_s)
        ]
        stays = [record for of_it in left for record, _ in of_it[-1:]]
        stays += [record for of_it in left for record, has_blob in of_it[:-1] if has_blob]
        earlier = [
            (record, of_it[-1][0].final)
            for of_it in left
            for record, has_blob in of_it[:-1]
            if not has_blob
        ]
        earlier.sort(key=lambda one: -one[0].number)
        stays += [
            record for record, is_over in earlier[:most] if record.at_s >= since_s or not is_over
        ]
        went = ledger.prune("plan", keep, since_s)
        assert ledger.history() == sorted(stays, key=lambda record: -record.number)
        assert went == len(puts) - len(stays)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["plan", "operation", "placement", "snapshot"]),
            st.sampled_from("ab"),
            st.sampled_from("xy"),
        ),
        max_size=20,
    ),
    st.integers(0, 5),
)
def test_the_newest_of_each_is_what_a_plain_reading_says(
    puts: list[tuple[str, str, str]], limit: int
) -> None:
    last: dict[tuple[str, str], Record[Any]] = {}
    with closing(Ledger(None)) as ledger:
        for kind, id, pool in puts:
            version = ledger.version(kind, id) + 1
            last.pop((kind, id), None)
            last[kind, id] = ledger.put(a_plan(version, id, kind=kind, pool=pool))
        those = [one for one in reversed(last.values()) if one.kind in ("plan", "operation")]
        assert ledger.newest_of_each(limit, but=["placement"]) == those[:limit]
        for pool in "xy":
            of_pool = [one for one in those if one.pool == pool]
            assert ledger.newest_of_each(limit, pool, but=["placement"]) == of_pool[:limit]
        for kind in ("plan", "snapshot"):
            of_kind = [one for one in reversed(last.values()) if one.kind == kind]
            assert ledger.newest(kind) == of_kind


def tamper(ledger: Ledger, change: str, where: str = "1") -> None:
    """Past the ledger."""
    ledger._connection.execute(f"UPDATE records SET {change} WHERE {where}")


DAMAGES = {
    "cut short": ("""body = '{"epoch": '""", "is not JSON"),
    "empty": ("body = ''", "is not JSON"),
    "no end of brackets": ("body = replace(hex(zeroblob(50000)), '0', '[')", "is not JSON"),
    "no object": ("body = '[1]'", "is JSON, but no object"),
    "no number": ("""body = '{"epoch": NaN}'""", "holds NaN, which is no number of JSON's"),
    "no text": ("body = x'ff'", "has a body that is no text"),
    "half a letter": ("body = CAST(x'7b22c3' AS TEXT)", "has a body that is no text"),
    "a reason of bytes": ("reason = x'ff'", "has a reason that is no text"),
    "a time that never was": ("at_s = 'noon'", "is of no unix time: 'noon'"),
    "an endless time": ("at_s = 9e999", "is of no unix time: inf"),
    "another form": ("""body = '{"form": 2}'""", "has an unknown form: KeyError('epoch')"),
}


@pytest.mark.parametrize(("change", "why"), DAMAGES.values(), ids=DAMAGES)
def test_a_record_that_cannot_be_read_is_left_out_and_named(
    ledger: Ledger, change: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    ledger._forms = {"plan": Form(lambda row: {"epoch": row["epoch"]}, dict)}
    ledger.put_all([a_plan(id="a"), a_plan(id="b"), a_plan(id="c")])
    tamper(ledger, change, "id = 'b'")
    for _ in range(2):
        assert keys(ledger.newest("plan")) == keys(ledger.history()) == [("c", 1), ("a", 1)]
        assert ledger.versions("plan", "b") == []
        with pytest.raises(Unreadable, match=f"plan b {re.escape(why)} ") as caught:
            ledger.get("plan", "b")
        assert "\n" not in str(caught.value)
    assert ledger.left_out() == [LeftOut("plan", "b", 1, "pool-a", 2, why)]
    assert caplog.text.count("plan b of") == 1  # and not at each reading
    assert (ledger.ids("plan"), ledger.version("plan", "b")) == (["a", "b", "c"], 1)


def test_an_unreadable_version_does_not_bring_the_one_before_it_back(ledger: Ledger) -> None:
    ledger.put_all([a_plan(1, final=False), a_plan(2)])
    tamper(ledger, "body = ''", "version = 2")
    assert ledger.newest("plan") == []


@pytest.mark.parametrize(
    ("damaged", "becomes", "is_read"),
    [(1, "70", True), (2, "70", True), (3, "70", True), (3, "0", False), (3, "'x'", False),
     (1, "4", True), (2, "1 << 52", True), (3, "1 << 52", True), (3, "(1 << 52) - 1", True),
     (2, "1 << 62", True), (3, "1 << 62", False)],
)  # fmt: skip
def test_the_newest_version_is_the_last_written_whatever_its_number_says(
    ledger: Ledger, damaged: int, becomes: str, is_read: bool
) -> None:
    """Where a row's version was damaged, the story goes on; the next version heals the order."""
    ledger.put_all([a_plan(1, final=False), a_plan(2, final=False), a_plan(3, final=False)])
    tamper(ledger, f"version = {becomes}", f"version = {damaged}")
    assert [record.number for record in ledger.newest("plan", final=False)] == [3] * is_read
    if is_read:
        found = ledger.get("plan", "p1")
        assert found is not None
        assert found.number == 3
        follower = found.next(1_010.0, "goes on")
    else:
        with pytest.raises(Unreadable):
            ledger.get("plan", "p1")
        follower = a_plan(ledger.version("plan", "p1") + 1)
    put = ledger.put(follower)
    assert ledger.newest("plan") == [put] == [ledger.get("plan", "p1")]
    assert ledger.version("plan", "p1") == put.version
    assert ledger.put(put.next(1_011.0, "on")).version == put.version + 1
    with pytest.raises(Conflict):
        ledger.put(put.next(1_011.0, "too late"))


def test_what_cannot_be_read_is_named_until_something_follows_or_it_goes(ledger: Ledger) -> None:
    ledger.put_all([a_plan(id="a", final=False), a_plan(id="b", final=False), a_snapshot(1)])
    tamper(ledger, "body = ''")
    for kind in ("plan", "snapshot"):
        assert ledger.newest(kind) == []
    assert [one.id for one in ledger.left_out()] == ["a", "b", "worker-0"]
    ledger.put_all([a_plan(2, "a"), a_snapshot(2)])
    assert [one.id for one in ledger.left_out()] == ["b"]
    ledger.prune("plan", keep=9, since_s=2_000.0)  # also if it is open: nobody can end it
    assert (ledger.left_out(), ledger.history()) == ([], [])


@pytest.mark.parametrize("body", [{"x": float("nan")}, {"x": object()}])
def test_a_body_that_is_not_json_is_refused(ledger: Ledger, body: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match=r"plan p1 cannot be put: .*: records are JSON"):
        ledger.put(a_plan(value=body))
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
