"""Experts that nearby tokens repeat, in worlds of one layer and top-1, and by brute force."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.prediction.locality import sch, srp
from placer.trace import Trace
from tests.builders import a_trace, random_trace


def routed(*experts: int) -> Trace:
    return a_trace([[[expert]] for expert in experts])


def test_one_expert_covers_a_segment_that_uses_no_other() -> None:
    assert srp(routed(0, 0, 3, 3), 2) == 1


def test_the_best_group_is_what_is_used_often_enough() -> None:
    # Of two segments one uses 0 twice, one 1 and 2 once each. Whoever is used at all: 3 experts for
    # 2 tokens each cover 4 of 4, F1 = 2 * 4 / (6 + 4); who is used twice: 2 of 4, 2 * 2 / (2 + 4).
    assert srp(routed(0, 0, 1, 2), 2) == pytest.approx(0.8)


def test_a_segment_that_is_not_whole_does_not_count() -> None:
    assert srp(routed(0, 0, 1), 2) == 1
    assert srp(a_trace([[[0]], [[1]], [[1]]], seq_lens=[1, 2]), 2) == 1
    assert srp(routed(0), 2) is None


@given(st.integers(0, 2**16), st.integers(1, 6))
def test_srp_is_the_best_f1_of_all_thresholds(seed: int, segment: int) -> None:
    trace = random_trace(seed)
    counts: list[int] = []
    for sequence in np.split(trace.expert_ids, np.cumsum(trace.seq_lens)[:-1]):
        for start in range(0, len(sequence) - segment + 1, segment):
            for layer in range(trace.layers):
                counts += Counter(
                    sequence[start : start + segment, layer].ravel().tolist()
                ).values()
    total = sum(counts)
    best = [
        2 * sum(f for f in counts if f >= a) / (segment * sum(f >= a for f in counts) + total)
        for a in range(1, segment + 1)
        if total
    ]
    found = srp(trace, segment)
    assert found == (pytest.approx(max(best)) if best else None)


def test_a_cache_keeps_what_comes_next() -> None:
    # Room for one: after 0 and 1 it keeps 0, which the next two tokens use.
    assert sch(routed(0, 1, 0, 0), 2, 1) == 0.5
    assert sch(routed(0, 1, 0, 1), 2, 2) == 0.5  # room for both: the first of each is missed
    assert sch(routed(0, 1, 2, 3), 2, 4) == 0


def test_each_sequence_begins_with_an_empty_cache() -> None:
    assert sch(a_trace([[[0]], [[0]]], seq_lens=[1, 1]), 2, 1) == 0
    assert sch(routed(0, 0), 2, 1) == 0.5


@given(st.integers(0, 2**16), st.integers(1, 6), st.sampled_from([0.5, 1.0, 1.5]))
def test_sch_is_what_a_plain_reading_of_it_gives(seed: int, segment: int, size: float) -> None:
    trace = random_trace(seed)
    hits = 0
    for sequence in np.split(trace.expert_ids, np.cumsum(trace.seq_lens)[:-1]):
        for layer in range(trace.layers):
            cache: set[int] = set()
            for at in range(len(sequence)):
                needed = set(sequence[at, layer].tolist())
                hits += len(needed & cache)
                coming = Counter(sequence[at + 1 : at + 1 + segment, layer].ravel().tolist())
                order = sorted(cache | needed, key=lambda expert: (-coming[expert], expert))
                cache = set(order[: max(round(size * 2), 1)])
    assert sch(trace, segment, size) == pytest.approx(hits / trace.expert_ids.size)
