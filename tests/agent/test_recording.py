"""2 layers x 3 experts, top-2. Two prompt tokens: {0, 1} then {1, 2}, drawn from 0 to 1 and from 1
to 1; and one that was decoded: {0, 2} then {0, 1}, from 0 to 0."""

from dataclasses import replace

import numpy as np
import pytest

from placer.agent.recording import Counts, Recording
from placer.agent.sampling import Sequence
from placer.profile import of_trace
from placer.trace import Trace
from tests.agent.workers import a_recording, a_sequence

COUNTS = Counts(
    load=np.array([[[2, 2, 0], [0, 2, 2]], [[1, 0, 1], [1, 1, 0]]], dtype=np.float32),
    transitions=np.array(
        [[[[0, 1, 0], [0, 1, 0], [0, 0, 0]]], [[[1, 0, 0], [0, 0, 0], [0, 0, 0]]]],
        dtype=np.float32,
    ),
    coactivation=np.array(
        [
            [[[2, 2, 0], [2, 2, 0], [0, 0, 0]], [[0, 0, 0], [0, 2, 2], [0, 2, 2]]],
            [[[1, 0, 1], [0, 0, 0], [1, 0, 1]], [[1, 1, 0], [1, 1, 0], [0, 0, 0]]],
        ],
        dtype=np.float32,
    ),
    tokens=np.array([2, 1]),
)


COUNTS.coactivation.flags.writeable = False


def recorded(counts: Counts = COUNTS, *sequences: Sequence) -> Recording:
    return Recording(counts, list(sequences), requests=np.array([2, 1]), window_s=5.0)


def test_each_phase_has_its_profile() -> None:
    prefill, decode = recorded().profiles()
    assert (prefill.phase, decode.phase) == ("prefill", "decode")
    assert (prefill.tokens, decode.tokens) == (2, 1)
    assert (prefill.sequences, decode.sequences) == (2, 1)
    assert (prefill.window_s, decode.window_s) == (5.0, 5.0)
    assert prefill.load.tolist() == [[2, 2, 0], [0, 2, 2]]
    assert decode.load.tolist() == [[1, 0, 1], [1, 1, 0]]
    assert prefill.transitions is not None
    assert prefill.transitions.tolist() == [[[0, 1, 0], [0, 1, 0], [0, 0, 0]]]


def test_an_expert_is_not_used_together_with_itself() -> None:
    prefill, _ = recorded().profiles()
    assert prefill.coactivation is not None
    assert prefill.coactivation.tolist() == [
        [[0, 2, 0], [2, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 2], [0, 2, 0]],
    ]


def test_the_counts_stay_as_they_were() -> None:
    copy = replace(COUNTS, coactivation=COUNTS.coactivation.copy())
    recorded(copy).profiles()
    assert copy.coactivation[0, 0].tolist() == [[2, 2, 0], [2, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize(("tokens", "phases"), [([2, 0], ["prefill"]), ([0, 1], ["decode"])])
def test_a_phase_without_tokens_is_left_out(tokens: list[int], phases: list[str]) -> None:
    recording = recorded(replace(COUNTS, tokens=np.array(tokens)))
    assert [profile.phase for profile in recording.profiles()] == phases


def test_without_any_token_there_is_no_profile() -> None:
    assert recorded(replace(COUNTS, tokens=np.zeros(2, dtype=int))).profiles() == []


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_top_k_is_deduced_from_the_load_of_a_layer(top_k: int) -> None:
    tokens = [[list(range(top_k))] * 2] * 7  # 7 tokens that all use the first experts
    (profile,) = a_recording(decode=tokens).profiles()
    assert profile.top_k == top_k


def test_its_profile_is_what_placer_counts_in_the_same_tokens() -> None:
    tokens = [[[0, 1], [1, 2]], [[1, 0], [1, 2]]]
    wanted = of_trace(Trace(np.array(tokens), np.array([1, 1]), experts=3))
    prefill, _ = recorded().profiles()
    for name in ("load", "coactivation"):
        assert (getattr(prefill, name) == getattr(wanted, name)).all(), name
    # One pair of each token is drawn; in the mean it is all of them.
    assert prefill.transitions is not None
    assert wanted.transitions is not None
    assert prefill.transitions.sum() == wanted.transitions.sum() == 2
    assert not prefill.transitions[wanted.transitions == 0].any()
    assert (prefill.top_k, prefill.tokens) == (wanted.top_k, wanted.tokens)


def test_sampled_requests_are_laid_end_to_end() -> None:
    first = a_sequence([[[0, 1], [1, 2]], [[1, 0], [1, 2]]], first_id=7)
    second = a_sequence([[[0, 2], [0, 1]]], first_id=50)
    trace = recorded(COUNTS, first, second).trace()
    assert trace is not None
    assert trace.expert_ids.tolist() == [[[0, 1], [1, 2]], [[0, 1], [1, 2]], [[0, 2], [0, 1]]]
    assert trace.seq_lens.tolist() == [2, 1]
    assert trace.token_ids is not None
    assert trace.token_ids.tolist() == [7, 8, 50]
    assert (trace.experts, trace.phase) == (3, "mixed")


def test_without_sampled_requests_there_is_no_trace() -> None:
    assert recorded().trace() is None


def test_a_request_with_a_choice_that_is_no_experts_is_left_out() -> None:
    good, marked = a_sequence([[[0, 1], [1, 2]]]), a_sequence([[[0, 1], [-1, 2]]])
    trace = recorded(COUNTS, marked, good).trace()
    assert trace is not None
    assert trace.expert_ids.tolist() == [[[0, 1], [1, 2]]]
    assert recorded(COUNTS, marked).trace() is None


def test_a_trace_has_vocabulary_ids_only_if_all_its_requests_do() -> None:
    known = a_sequence([[[0, 1], [1, 2]]])
    trace = recorded(COUNTS, known, replace(known, token_ids=None)).trace()
    assert trace is not None
    assert trace.token_ids is None
