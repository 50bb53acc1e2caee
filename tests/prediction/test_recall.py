"""Token 7 and tokens not known, in a model of 1 layer x 4 experts, top-2."""

import numpy as np
import pytest

from placer.prediction.recall import guesses, next_layer
from placer.tables import Vocabulary
from placer.tables.experts import ExpertTables
from tests.builders import a_trace

# Token 7 mostly uses expert 0, and expert 1 less than half of the time; others use 2 or 3.
TABLES = ExpertTables(
    Vocabulary(np.array([7]), np.array([0])),
    (),
    np.array([[[0, 1], [2, 3]]], dtype=np.uint8),
    np.array([[1, 0]], dtype=np.uint8),
)
TRACE = a_trace([[[0, 2]], [[2, 3]]], token_ids=np.array([7, 9]))


def test_of_as_many_experts_as_are_used_precision_is_recall() -> None:
    found = guesses(TRACE, TABLES, np.array([0, -1]), only_likely=False)
    assert (found.recall, found.precision, found.f1) == (0.75, 0.75, 0.75)  # 0, and 2 and 3
    assert found.recall_by_layer.tolist() == [0.75]


def test_of_the_likely_ones_fewer_are_told_and_more_of_them_are_right() -> None:
    found = guesses(TRACE, TABLES, np.array([0, -1]), only_likely=True)
    assert (found.recall, found.precision) == (0.25, 1)
    assert found.f1 == pytest.approx(2 * 0.25 * 1 / 1.25)


def test_where_nothing_is_told_there_is_no_precision() -> None:
    found = guesses(TRACE, TABLES, np.array([-1, -1]), only_likely=True)
    assert (found.recall, found.precision, found.f1) == (0, None, 0)


def test_recall_by_layer_is_of_the_layers_own_experts() -> None:
    twice = ExpertTables(
        TABLES.vocabulary, (), np.tile(TABLES.experts, (2, 1, 1)), np.tile(TABLES.likely, (2, 1))
    )
    trace = a_trace([[[0, 1], [2, 3]]])
    found = guesses(trace, twice, np.array([0]), only_likely=False)
    assert found.recall_by_layer.tolist() == [1, 0]
    assert found.recall == 0.5


def test_the_next_layers_experts_are_those_that_follow_this_layers() -> None:
    # 0 is followed by 2 mostly, 1 by 3 and sometimes 0: of both, 2 and 3 are likeliest.
    following = np.zeros((1, 4, 4), dtype=np.float16)
    following[0, 0, 2], following[0, 1, 3], following[0, 1, 0] = 1, 0.75, 0.25
    right = a_trace([[[0, 1], [2, 3]]])
    assert next_layer(right, following, 2).recall == 1
    half = a_trace([[[0, 1], [0, 2]]])
    assert next_layer(half, following, 2).recall == 0.5
    wider = next_layer(half, following, 3)
    assert wider.recall == 1
    assert wider.precision == pytest.approx(2 / 3)
