import numpy as np
import pytest

from placer.errors import RoutingError
from placer.trace import Trace, concatenate
from tests.builders import a_trace

TWO_SEQUENCES = a_trace([[[0], [1]], [[2], [3]], [[1], [1]]], seq_lens=[1, 2])


def test_a_trace_knows_its_dimensions() -> None:
    assert TWO_SEQUENCES.dims == "2 layers x 4 experts, top-1"
    assert (TWO_SEQUENCES.tokens, TWO_SEQUENCES.sequences) == (3, 2)


def test_load_counts_the_tokens_of_each_expert() -> None:
    assert TWO_SEQUENCES.load.tolist() == [[1, 1, 1, 0], [0, 2, 0, 1]]


def test_a_tokens_experts_are_kept_in_ascending_order_each_with_its_gate() -> None:
    gates = np.array([[[0.7, 0.1, 0.2]]])
    found = a_trace([[[3, 0, 2]]], gates=gates)
    assert found.expert_ids.tolist() == [[[0, 2, 3]]]
    assert found.gates is not None
    assert found.gates.tolist() == [[[0.1, 0.2, 0.7]]]
    assert a_trace([[[3, 0, 2]]]).expert_ids.tolist() == [[[0, 2, 3]]]


def test_arrays_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="read-only"):
        TWO_SEQUENCES.expert_ids[0, 0, 0] = 3


def test_a_split_keeps_sequences_whole_and_loses_none() -> None:
    fit, held_out = TWO_SEQUENCES.split(0.5, seed=0)
    assert sorted([*fit.seq_lens, *held_out.seq_lens]) == [1, 2]
    assert (fit.load + held_out.load == TWO_SEQUENCES.load).all()


def test_a_split_depends_on_the_seed_alone() -> None:
    trace = a_trace([[[0], [0]]] * 20, seq_lens=[1] * 20, token_ids=np.arange(20))

    def held_out(seed: int) -> list[int]:
        ids = trace.split(0.3, seed)[1].token_ids
        assert ids is not None
        return [int(i) for i in ids]

    assert held_out(1) == held_out(1) != held_out(2)
    assert len(held_out(1)) == 6


def test_concatenating_adds_tokens_and_sequences() -> None:
    both = concatenate([TWO_SEQUENCES, TWO_SEQUENCES])
    assert both.seq_lens.tolist() == [1, 2, 1, 2]
    assert (both.load == 2 * TWO_SEQUENCES.load).all()


def test_traces_of_two_phases_are_mixed() -> None:
    prefill = a_trace([[[0]]], meta={"phase": "prefill"})
    decode = a_trace([[[0]]], meta={"phase": "decode"})
    assert concatenate([prefill, prefill]).phase == "prefill"
    assert concatenate([prefill, decode]).phase == "mixed"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: a_trace([[[4]]]), "expert id 4 is outside 0..3"),
        (lambda: a_trace([[[-1]]]), "expert id -1 is outside 0..3"),
        (lambda: a_trace([[[2, 2]]]), "token 0 has expert 2 twice in the top-2 of layer 0"),
        (lambda: a_trace([[[0]]], seq_lens=[2]), "add up to 2 but expert_ids holds 1"),
        (lambda: a_trace([[[0]]], seq_lens=[1, 0]), "seq_lens holds 0"),
        (lambda: a_trace([[[0]]], seq_lens=[]), r"seq_lens is float64\[0\]"),
        (lambda: Trace(np.zeros((0, 1, 1), int), np.array([1]), 4), "an empty trace"),
        (lambda: a_trace([[[0.5]]]), "must be integers"),
        (lambda: a_trace([[[2**40]]], experts=2**40 + 1), "no model is as large"),
        (lambda: a_trace([[[0]] * 9], experts=4096), "a trace of 9 layers x 4096 experts"),
        (lambda: a_trace([[list(range(200))]], experts=200), "top-200: no model is as large"),
        (lambda: Trace(np.zeros((1, 1), int), np.array([1]), 4), "must be integers"),
        (lambda: a_trace([[[0]]], token_ids=np.zeros(2, int)), r"token_ids is int64\[2\]"),
        (lambda: a_trace([[[0]]], token_ids=np.zeros(1)), r"float64\[1\]: it must be integers"),
        (lambda: a_trace([[[0]]], gates=np.array([[[np.nan]]])), "gates hold NaN"),
        (lambda: a_trace([[[0]]], gates=np.array([[[-0.5]]])), "gates hold -0.5: .* the softmax"),
        (lambda: a_trace([[[0]]], meta={"phase": "warmup"}), "phase 'warmup'"),
        (lambda: TWO_SEQUENCES.split(1.5, 0), "holdout 1.5"),
        (lambda: a_trace([[[0]]]).split(0.5, 0), "one sequence cannot be split"),
        (lambda: concatenate([TWO_SEQUENCES, a_trace([[[0]]])]), "the traces disagree"),
    ],
)
def test_what_is_wrong_is_named(make: object, message: str) -> None:
    with pytest.raises(RoutingError, match=message):
        make()  # type: ignore[operator]
