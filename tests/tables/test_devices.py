"""Tokens 7 and 9 in a model of 2 layers x 4 experts on 2 GPUs, unless said otherwise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.errors import RoutingError
from placer.placement import EMPTY
from placer.tables import CERTAIN, device_tables, devices, local_activation_rate, token_identity
from placer.tables.devices import chains
from placer.trace import Trace
from tests.builders import a_placement, a_trace, random_trace
from tests.tables.worlds import LINEAR, TRACE


def test_a_tokens_device_has_most_of_its_experts() -> None:
    tables = device_tables(TRACE, LINEAR)
    seven, nine, other = tables.vocabulary.rows(np.array([7, 9, 8]))
    assert tables.device[:, [seven, nine, other]].tolist() == [[0, 1, 0], [1, 0, 1]]
    assert tables.confidence[:, [seven, nine]].tolist() == [[CERTAIN] * 2] * 2
    assert tables.confidence[:, other].tolist() == [round(CERTAIN * 2 / 3)] * 2
    assert tables.near[seven].tolist() == [0.5, 0.5]


def test_replicas_share_a_tokens_score() -> None:
    # Token 7 has experts 0 and 1, on GPU 0, and then expert 2, on both.
    placement = a_placement([[0, 1, EMPTY, 2, 3, EMPTY], [0, 1, 2, 2, 3, EMPTY]])
    tables = device_tables(TRACE, placement)
    assert tables.near[tables.vocabulary.rows(np.array([7]))].tolist() == [[0.75, 0.25]]


def test_a_requests_score_is_the_sum_over_its_tokens() -> None:
    # Token 7 is half on each GPU, 9 on GPU 1 then 0; unknown tokens are 1/2 and 1/2 too.
    scores = device_tables(TRACE, LINEAR).request_scores(np.array([7, 9, 7]), np.array([1, 2]))
    assert scores.tolist() == [[0.5, 0.5], [1.0, 1.0]]
    pure = a_trace([[[0], [1]], [[3], [2]]], token_ids=np.array([7, 9]))
    found = device_tables(pure, LINEAR).request_scores(np.array([7, 9, 9]), np.array([1, 2]))
    assert found.tolist() == [[1, 0], [0, 2]]


def test_the_surer_of_the_tables_is_believed() -> None:
    # Half of token 7 is on GPU 1, and the 2-gram knows which: that which was there before.
    trace = a_trace([[[0]] * 3, [[3]] * 3] * 2, token_ids=np.array([7] * 4))
    tables = device_tables(trace, a_placement([[0, 1, 2, 3]] * 3))
    before = np.array([[0, 0], [1, 1], [1, 0]])
    device, sure = tables.guess(np.array([7] * 3), 2, before)
    assert device.tolist() == [0, 1, 0]  # 1, 0 never came
    assert sure.tolist() == [CERTAIN, CERTAIN, 128]  # then half of its experts are on either
    assert tables.next_confidence[2].tolist() == [[CERTAIN, 0], [0, CERTAIN]]
    assert not tables.next_confidence[:2].any()

    # Both tokens come by 0, 0 and part there: now the tokens know.
    parting = a_trace([[[0], [0], [0]], [[0], [0], [3]]], token_ids=np.array([7, 9]))
    tables = device_tables(parting, a_placement([[0, 1, 2, 3]] * 3))
    device, _ = tables.guess(np.array([7, 9]), 2, np.zeros((2, 2), dtype=int))
    assert device.tolist() == [0, 1]


def test_at_equal_confidence_the_2_gram_is_believed() -> None:
    # Token 9 always was on GPU 0, and tokens that came by 0, 0 always went on to GPU 1.
    trace = a_trace([[[0], [0], [2]], [[3], [3], [0]]], token_ids=np.array([7, 9]))
    tables = device_tables(trace, a_placement([[0, 1, 2, 3]] * 3))
    device, _ = tables.guess(np.array([9]), 2, np.zeros((1, 2), dtype=int))
    assert device.tolist() == [1]


def test_the_published_table_takes_11_7_mb_confidences_and_all() -> None:
    # arXiv 2503.04398 has 102,400 tokens x 60 layers in int16, devices alone.
    tokens = 102_400
    ids = np.zeros((tokens, 60, 1), dtype=np.uint8)
    trace = Trace(ids, np.array([tokens]), 2, token_ids=np.arange(tokens))
    tables = device_tables(trace, a_placement([[0, 1]] * 60, experts=2))
    both = tables.device.nbytes + tables.confidence.nbytes
    assert both / 2**20 == pytest.approx(11.7, abs=0.05)


def test_more_gpus_than_a_byte_counts_take_two() -> None:
    trace = a_trace([[[0], [299]]], experts=300, token_ids=np.array([7]))
    tables = device_tables(trace, a_placement([list(range(300))] * 2, 300, gpus=300))
    assert tables.device[:, 0].tolist() == [0, 299]
    assert (tables.device.itemsize, tables.confidence.itemsize) == (2, 1)


def test_where_gpus_are_too_many_for_2_grams_the_token_alone_is_believed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace = a_trace([[[0], [0], [3]]], token_ids=np.array([7]))
    placement = a_placement([[0, 1, 2, 3]] * 3)
    monkeypatch.setattr(devices, "MOST_CELLS", 3 * 2**3 - 1)
    found = chains(trace, placement)
    assert (found + found).parts is None
    tables = device_tables(trace, placement)
    assert not tables.next_confidence.any()
    assert tables.guess(np.array([7]), 2, np.zeros((1, 2), dtype=int))[0].tolist() == [1]


def test_chains_of_two_recordings_add_up_to_those_of_both() -> None:
    trace = random_trace(1, tokens=60, layers=4, top_k=3)
    placement = a_placement([[0, 1, 2, 3, 0, 2], *[[0, 1, 2, 3, 1, 3]] * 3])
    parts = [trace.select(np.arange(2) == one) for one in range(2)]
    one, two = (chains(part, placement) for part in parts)
    added, whole = (one + two).parts, chains(trace, placement).parts
    assert added is not None
    assert whole is not None
    assert added.tolist() == whole.tolist()
    assert whole[2:].sum() == 2 * 60 * 3 * 2520  # activations of 60 tokens in two layers
    with pytest.raises(RoutingError, match=r"plan sha256:\w+\.{3} and for plan sha256:\w+\.{3} do"):
        _ = one + chains(trace, a_placement([[0, 1, 2, 3]] * 4))


@given(seed=st.integers(0, 2**16), gpus=st.sampled_from([1, 2, 4]))
def test_tables_expect_the_rate_that_their_own_trace_has(seed: int, gpus: int) -> None:
    trace = random_trace(seed, tokens=30, layers=3, experts=8, top_k=3)
    rng = np.random.default_rng(seed)
    placement = a_placement([rng.permutation(8).tolist() for _ in range(3)], 8, gpus)
    tables = device_tables(trace, placement)
    rows = tables.vocabulary.rows(token_identity(trace))
    homes = tables.near[rows].argmax(axis=1)
    expected = tables.near[rows, homes].mean()
    assert local_activation_rate(trace, placement, homes) == pytest.approx(expected, abs=1e-3)
    confidence = tables.confidence[:, rows].mean() / CERTAIN
    best = local_activation_rate(trace, placement, tables.device[:, rows].T)
    assert best == pytest.approx(confidence, abs=3e-3)


def test_another_models_trace_is_refused() -> None:
    with pytest.raises(RoutingError, match=r"the trace has 2 layers .* placement 1 layers"):
        device_tables(TRACE, a_placement([[0, 1, 2, 3]]))
