"""Four requests of two kinds, in turn: two use expert 0 for all of their tokens, two expert 1."""

import numpy as np

from placer.prediction.rebatching import active_experts
from tests.builders import a_trace

TRACE = a_trace([[[kind]] for kind in (0, 1, 0, 1) for _ in range(5)], seq_lens=[5] * 4)


def test_first_in_first_out_takes_one_of_each() -> None:
    assert active_experts(TRACE, 2, None) == 2


def test_put_together_by_what_they_use_a_batch_reads_one_expert() -> None:
    assert active_experts(TRACE, 2, TRACE.expert_ids) == 1


def test_by_a_table_that_is_wrong_it_reads_what_it_really_uses() -> None:
    wrong = np.zeros_like(TRACE.expert_ids)
    assert active_experts(TRACE, 2, wrong) == 2  # all look alike: the oldest


def test_too_few_requests_leave_no_choice() -> None:
    assert active_experts(TRACE, 3, None) is None


def test_the_oldest_is_always_served() -> None:
    # One request of another kind than the three others: it is not left waiting for ever.
    odd = a_trace([[[kind]] for kind in (1, 0, 0, 0) for _ in range(5)], seq_lens=[5] * 4)
    found = active_experts(odd, 2, odd.expert_ids)
    assert found is not None
    assert 1 < found < 2
