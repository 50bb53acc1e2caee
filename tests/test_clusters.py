"""Clusters of requests: sums that no order changes, and which requests are joined."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer import clusters
from placer.clusters import MOST, Clusters, loads_by_request, merge, of_requests
from placer.errors import RoutingError
from placer.profile import merge as merged_profiles
from placer.profile import of_chunks, of_trace
from placer.trace import Trace
from tests.builders import a_trace, random_trace

# Three requests: two tokens that use expert 0, one of 1, three of 3.
THREE = a_trace([[[0]], [[0]], [[1]], [[3]], [[3]], [[3]]], seq_lens=[2, 1, 3])


def random_requests(seed: int, count: int, experts: int = 4) -> Trace:
    rng = np.random.default_rng(seed)
    lens = rng.integers(1, 9, count)
    ids = rng.permuted(np.tile(np.arange(experts), (lens.sum(), 2, 1)), axis=2)[:, :, :2]
    return Trace(ids, lens, experts)


def as_rows(found: Clusters) -> list[tuple[float, ...]]:
    """Each cluster as one row, in any order."""
    flat = found.load.reshape(len(found.tokens), -1)
    return sorted(map(tuple, np.column_stack([found.tokens, found.requests, flat]).tolist()))


def test_few_requests_are_clusters_of_their_own() -> None:
    found = of_requests(THREE)
    assert as_rows(found) == [(1, 1, 0, 1, 0, 0), (2, 1, 2, 0, 0, 0), (3, 1, 0, 0, 0, 3)]
    assert loads_by_request(THREE, slice(1, 3)).tolist() == [[[0, 1, 0, 0]], [[0, 0, 0, 3]]]


def test_of_many_requests_those_alike_are_joined() -> None:
    # 40 requests of each of two kinds, of which each has a cluster of its own if two are enough.
    kinds = a_trace([[[0]] * 2, [[3]] * 2] * 40, seq_lens=[1] * 80)
    found = of_requests(kinds)
    assert len(found.tokens) <= MOST
    assert found.requests.sum() == 80
    used = found.load[:, 0] > 0
    assert (used.sum(axis=1) == 1).all()  # nobody was joined with the other kind


def test_the_union_that_adds_least_is_made_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MOST", 2)
    # Expert 0, nearly so, and expert 3: the first two are joined.
    tokens = [[[0]]] * 4 + [[[0]]] * 3 + [[[1]]] + [[[3]]] * 4
    found = of_requests(a_trace(tokens, seq_lens=[4, 4, 4]))
    assert as_rows(found) == [(4, 1, 0, 0, 0, 4), (8, 2, 7, 1, 0, 0)]


@given(st.integers(0, 2**16), st.lists(st.integers(1, 9), min_size=3, max_size=3))
def test_merging_few_is_free_of_order_and_grouping(seed: int, counts: list[int]) -> None:
    parts = [of_requests(random_requests(seed + at, n)) for at, n in enumerate(counts)]
    one, two, three = parts
    together = merge(parts)
    assert together is not None
    for other in (merge([merge([one, two]), three]), merge([three, merge([two, one])])):
        assert other is not None
        assert other.digest == together.digest


@given(st.integers(0, 2**16), st.integers(40, 90), st.integers(40, 90))
def test_merging_many_loses_no_token_and_is_free_of_the_parts_order(
    seed: int, first: int, second: int
) -> None:
    traces = random_requests(seed, first), random_requests(seed + 1, second)
    one, other = (of_requests(trace) for trace in traces)
    found, turned = merge([one, other]), merge([other, one])
    assert found is not None
    assert turned is not None
    assert found.digest == turned.digest
    assert len(found.tokens) <= MOST
    assert found.requests.sum() == first + second
    total = sum(trace.load for trace in traces)
    assert (found.load.sum(axis=0) == total).all()


def test_a_profile_has_them_only_if_asked_and_chunks_add_up() -> None:
    trace = random_requests(0, 6)
    assert of_trace(trace).clusters is None
    whole = of_trace(trace, clustered=True).clusters
    assert whole is not None
    chosen = np.arange(6) < 2
    parts = trace.select(chosen), trace.select(~chosen)
    chunked = of_chunks(parts, clustered=True).clusters
    summed = merged_profiles([of_trace(part, clustered=True) for part in parts]).clusters
    assert chunked is not None
    assert summed is not None
    assert chunked.digest == summed.digest == whole.digest
    assert merged_profiles([of_trace(trace, True), of_trace(trace)]).clusters is None


def test_what_contradicts_itself_is_refused() -> None:
    good = of_requests(THREE)
    for change, message in (
        ({"tokens": good.tokens[:2]}, "must be"),
        ({"tokens": -good.tokens}, "tokens hold NaN, infinity or negative"),
        ({"load": good.load * 2}, "more load than tokens"),
    ):
        with pytest.raises(RoutingError, match=message):
            replace(good, **change)
    with pytest.raises(RoutingError, match=r"clusters must have loads \[clusters, 2, 4\]"):
        replace(of_trace(random_trace(0)), clusters=good)
