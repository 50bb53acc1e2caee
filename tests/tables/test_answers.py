"""How much further from the mean answers are than their prompts foretell: worlds of which the slope
follows by hand."""

from collections.abc import Sequence

import numpy as np
import pytest

from placer.tables import token_identity, token_table
from placer.tables.answers import Answered, further, halves
from placer.tables.factors import factors
from placer.trace import Trace
from tests.builders import a_trace

FILLER = 9  # a token that was never counted


def answers(*experts: Sequence[int], tokens: Sequence[Sequence[int]] = ()) -> Trace:
    """Of each request its tokens' experts in one layer, of two; expert e is token e's unless
    ``tokens`` are given."""
    found = np.concatenate([np.array(one) for one in (tokens or experts)])
    routed = [[[expert]] for one in experts for expert in one]
    return a_trace(routed, 2, [len(one) for one in experts], token_ids=found)


def slope(trace: Trace, prompts: Sequence[Sequence[int]]) -> float:
    """Of answers to these prompts."""
    table, tokens, ends = token_table(trace), token_identity(trace), np.cumsum(trace.seq_lens)
    starts = ends - trace.seq_lens
    requests = [
        Answered(np.array(prompt), tokens[start:end], trace.expert_ids[start:end], 0)
        for prompt, start, end in zip(prompts, starts, ends, strict=True)
    ]
    return further(table, factors(table), requests)


TWO_KINDS = answers(*[[kind] * 3 for kind in (0, 1) * 4])


@pytest.mark.parametrize("filler", [0, 1, 3])
def test_of_a_prompt_whose_other_tokens_are_unknown_answers_are_that_much_further(
    filler: int,
) -> None:
    """A prompt's one known token has all of its kind's expert, as the answer has."""
    prompts = [[kind, *[FILLER] * filler] for kind in (0, 1) * 4]
    assert slope(TWO_KINDS, prompts) == pytest.approx(1 + filler, rel=1e-3)


def test_answers_that_use_all_experts_alike_whatever_their_prompts_are_foretell_nothing() -> None:
    mixed = answers(*[[0, 1]] * 8)
    assert slope(mixed, [[kind] for kind in (0, 1) * 4]) == pytest.approx(0, abs=1e-3)


def test_answers_whose_prompts_foretell_the_opposite_are_taken_as_foretold_by_nothing() -> None:
    assert slope(TWO_KINDS, [[1 - kind] for kind in (0, 1) * 4]) == 0


def test_what_a_request_alone_said_of_its_tokens_foretells_nothing_of_it() -> None:
    """Of each a token that no other has, beside one of all; so that nothing can be told. With its
    own counts it would be foretold perfectly."""
    trace = answers(*[[kind] * 3 for kind in (0, 1) * 4], tokens=[[at] * 3 for at in range(8)])
    assert slope(trace, [[at, FILLER] for at in range(8)]) == 1


@pytest.mark.parametrize("prompts", [[[0]], [[0], [1]], [[FILLER]] * 8, [[0]] + [[FILLER]] * 7])
def test_where_nothing_can_be_told_answers_are_as_foretold(
    prompts: Sequence[Sequence[int]],
) -> None:
    trace = TWO_KINDS.select(np.arange(8) < len(prompts))
    assert slope(trace, prompts) == 1


def test_the_less_sure_the_nearer_to_one() -> None:
    """Three times as far, but of one request in eight the contrary; then of one in eighty."""
    prompts = [[kind, FILLER, FILLER] for kind in (0, 1) * 4]
    prompts[0] = [1, FILLER, FILLER]
    few = slope(TWO_KINDS, prompts)
    many = slope(answers(*[[at % 2] * 3 for at in range(80)]), prompts + [
        [kind, FILLER, FILLER] for kind in (0, 1) * 36
    ])  # fmt: skip
    assert 1 < few < 2.25 < many < 3


def test_no_request_foretells_nothing_else() -> None:
    table = token_table(TWO_KINDS)
    assert further(table, factors(table), []) == 1


def test_halves_of_sequences_foretell_one_another() -> None:
    """Half of the first half is a token that uses both experts as often."""
    sequences = [[2, 2, kind, kind, kind, kind, kind, kind] for kind in (0, 1) * 4]
    experts = [[0, 1, *tokens[2:]] for tokens in sequences]
    trace = answers(*experts, tokens=sequences)
    table = token_table(trace)
    assert [one.first for one in halves(trace)] == [4] * 8
    assert further(table, factors(table), halves(trace)) == pytest.approx(2, rel=1e-3)


def test_a_sequence_of_one_token_has_no_halves() -> None:
    assert not list(halves(answers([0], [1])))
