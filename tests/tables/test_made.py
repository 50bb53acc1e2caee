"""Tables as a whole: what they are for, how they add up, what they weigh."""

from dataclasses import replace

import numpy as np
import pytest

from placer.errors import RoutingError
from placer.tables import Tables, counted, tables_of, token_identity
from placer.trace import Trace
from tests.builders import a_model, a_placement, random_trace

MODEL = a_model(layers=3, experts=4, top_k=2)
PLACEMENT = a_placement([[0, 1, 2, 3], [3, 1, 2, 0], [0, 2, 1, 3]])


def a_recording(seed: int) -> Trace:
    """80 tokens of 6 kinds in four requests."""
    found = random_trace(seed, tokens=80, layers=3)
    ids = np.random.default_rng(seed).integers(6, size=80)
    return replace(found, seq_lens=np.full(4, 20), token_ids=ids)


def arrays(tables: Tables) -> dict[str, list[object]]:
    devices, experts = tables.devices, tables.experts
    found = {name: getattr(devices, name) for name in devices.__slots__ if name != "vocabulary"}
    found |= {"experts": experts.experts, "likely": experts.likely, "following": tables.following}
    found |= {str(at): keys for at, keys in enumerate(experts.keys)}
    found |= {"tokens": devices.vocabulary.tokens, "row": devices.vocabulary.row}
    return {name: array.tolist() for name, array in found.items()}


def test_what_agents_sampled_one_after_another_makes_the_tables_of_all_of_it() -> None:
    trace = a_recording(5)
    parts = [counted(trace.select(np.arange(4) % 2 == one), PLACEMENT) for one in range(2)]
    added, whole = (
        tables_of(one, MODEL) for one in (parts[0] + parts[1], counted(trace, PLACEMENT))
    )
    assert arrays(added) == arrays(whole)
    assert added.origin == whole.origin
    assert (whole.origin.tokens, whole.origin.sequences) == (80, 4)


def test_with_an_embedding_tokens_that_never_came_have_a_neighbours_row() -> None:
    trace = a_recording(1)
    embedding = np.arange(9, dtype=np.float64)[:, None]
    tables = tables_of(counted(trace, PLACEMENT), MODEL, embedding=embedding)
    five, eight, ten = tables.devices.vocabulary.rows(np.array([5, 8, 10]))
    assert five == eight != ten == -1
    assert tables.experts.rows(np.array([8]), np.array([1]), 1).tolist() == [five]


def test_an_embedding_of_tokens_that_have_no_ids_is_refused() -> None:
    counts = counted(random_trace(1, layers=3), PLACEMENT)
    with pytest.raises(RoutingError, match="an embedding is of token ids, and the traces have"):
        tables_of(counts, MODEL, embedding=np.zeros((9, 2)))


def test_counts_by_ids_and_by_expert_sets_do_not_add_up() -> None:
    with pytest.raises(RoutingError, match=r"by token ids and by expert sets of the first layer d"):
        _ = counted(a_recording(1), PLACEMENT) + counted(random_trace(1, layers=3), PLACEMENT)


def test_another_models_counts_are_refused() -> None:
    with pytest.raises(RoutingError, match=r"tiny has 3 layers x 5 .* counts are of 3 layers x 4 "):
        tables_of(counted(a_recording(1), PLACEMENT), a_model(layers=3, experts=5, top_k=2))


def test_they_are_for_one_plan_model_and_vocabulary_and_say_which() -> None:
    origin = tables_of(counted(a_recording(1), PLACEMENT), MODEL, "sha256:aa").origin
    origin.check(PLACEMENT.digest, MODEL, "sha256:aa", "token ids")
    origin.check()
    origin.check(model=replace(MODEL, name="unknown"), vocabulary="")  # nobody said
    other = a_placement([[0, 1, 2, 3]] * 3).digest
    with pytest.raises(RoutingError, match=f"for plan {PLACEMENT.digest}, and this is {other}"):
        origin.check(other)
    with pytest.raises(RoutingError, match=r"for model tiny \(3 .*, and this is huge \(3 layers"):
        origin.check(model=replace(MODEL, name="huge"))
    with pytest.raises(RoutingError, match=r"model tiny \(3 layers x 4 .* tiny \(2 layers x 4"):
        origin.check(model=a_model(layers=2, experts=4, top_k=2))
    with pytest.raises(RoutingError, match="for vocabulary sha256:aa, and this is sha256:bb"):
        origin.check(vocabulary="sha256:bb")
    with pytest.raises(RoutingError, match="token ids, and this is expert sets of the first layer"):
        origin.check(keyed_by="expert sets of the first layer")


def test_a_tokens_likeliest_experts_are_those_that_it_has() -> None:
    trace = a_recording(2)
    tables = tables_of(counted(trace, PLACEMENT), MODEL)
    rows = tables.experts.rows(token_identity(trace), trace.seq_lens, 1)
    counts = counted(trace, PLACEMENT).table
    for layer in range(3):
        own = counts.counts[layer, rows]
        chosen = np.take_along_axis(own, tables.experts.experts[layer, rows].astype(int), axis=1)
        assert (chosen[:, 0] == own.max(axis=1)).all()
        assert (chosen.sum(axis=1) == np.sort(own, axis=1)[:, -2:].sum(axis=1)).all()
