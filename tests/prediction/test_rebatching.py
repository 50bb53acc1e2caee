"""Requests of one layer and top-1, each of which uses one expert for all of its tokens."""

import numpy as np
import pytest

from placer.prediction.rebatching import active_experts
from placer.trace import Trace
from tests.builders import a_trace

LONG = 1000  # tokens: no request ends while it is looked at, or hardly any


def requests(*kinds: int) -> Trace:
    """``kinds``: the expert of each."""
    ids = [[[kind]] for kind in kinds for _ in range(LONG)]
    return a_trace(ids, seq_lens=[LONG] * len(kinds))


def test_first_in_first_out_reads_what_comes_together() -> None:
    assert active_experts(requests(0, 1, 2, 3), 2, None) == 2
    assert active_experts(requests(3, 3, 3, 3), 2, None) == 1
    mixed = active_experts(requests(*[0, 1] * 32), 8, None)
    assert mixed == pytest.approx(2, abs=0.05)  # eight of a kind hardly come together


def test_put_together_by_what_they_use_batches_read_one_expert_each() -> None:
    trace = requests(*[0, 1] * 32)
    assert active_experts(trace, 8, trace.expert_ids) == pytest.approx(1, abs=0.2)


def test_everybody_is_served_whether_alike_or_not() -> None:
    # Of four of one kind and two others, both others have to go with somebody, or together.
    trace = requests(0, 0, 0, 0, 1, 2)
    assert active_experts(trace, 2, trace.expert_ids) == pytest.approx(4 / 3)


def test_by_a_table_that_knows_nothing_it_is_first_in_first_out() -> None:
    trace = requests(*[0, 1] * 8)
    nothing = np.zeros_like(trace.expert_ids)
    assert active_experts(trace, 4, nothing) == active_experts(trace, 4, None)


def test_too_few_requests_leave_no_choice() -> None:
    assert active_experts(requests(0, 1, 2, 3), 3, None) is None
    assert active_experts(requests(0, 1, 2, 3), 2, None, queue=3) is None


def test_a_request_that_ends_makes_room_for_the_next() -> None:
    # Of one token each, so that four others come in every round; the one that differs is among them
    # two times of three, and then one batch of two reads two experts.
    trace = a_trace([[[kind]] for kind in (0, 0, 1, 0, 0, 0)], seq_lens=[1] * 6)
    found = active_experts(trace, 2, None, queue=4)
    assert found == pytest.approx(1 + 2 / 3 * 0.5, abs=0.01)
