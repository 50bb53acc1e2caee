"""What is generated: transformers' tokens, whatever the batch and wherever the experts."""

from collections.abc import Iterator

import numpy as np
import pytest

from controller.local_engine.local_engine import LocalEngine
from controller.local_engine.model.forward import expert, norm, product
from controller.local_engine.ranks.exchange import SEATS
from tests.controller.local_engine.tiny_engine import GOLDEN, MODEL, PROMPTS, generate

TOKENS = 50


@pytest.fixture(scope="module")
def one_rank() -> Iterator[LocalEngine]:
    with LocalEngine(MODEL, ranks=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(one_rank: LocalEngine) -> list[list[int]]:
    """One prompt after the other, on one rank."""
    return [one_rank.submit(prompt, TOKENS).tokens() for prompt in PROMPTS]


def test_greedy_outputs_are_those_of_transformers(alone: list[list[int]]) -> None:
    for golden, tokens in zip(GOLDEN, alone, strict=True):
        assert tokens[: len(golden["tokens"])] == golden["tokens"], golden["prompt"]


@pytest.mark.parametrize(("ranks", "slots"), [(1, 21), (2, 20), (3, 18), (4, 16), (4, 32)])
def test_neither_company_nor_ranks_nor_replicas_change_a_token(
    alone: list[list[int]], ranks: int, slots: int
) -> None:
    with LocalEngine(MODEL, ranks, slots) as engine:
        assert generate(engine, PROMPTS, TOKENS) == alone


def test_more_requests_than_seats_wait_their_turn(one_rank: LocalEngine) -> None:
    requests = [one_rank.submit(b"import ", 12) for _ in range(SEATS + 5)]
    outputs = {tuple(request.tokens()) for request in requests}
    assert len(outputs) == 1
    assert (one_rank.status.running, one_rank.status.waiting) == (0, 0)


def test_tokens_can_be_read_as_they_come(one_rank: LocalEngine) -> None:
    request = one_rank.submit(b"import ", 30)
    first = next(iter(request))
    assert request.tokens()[0] == first
    assert list(request) == request.tokens()
    assert len(request.tokens()) == 30
    assert request.longest_gap_s > 0
    assert request.error == ""


def test_products_do_not_depend_on_the_other_rows() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(37, 128)).astype(np.float32)
    weight = rng.normal(size=(128, 256)).astype(np.float32)
    page = rng.normal(size=3 * 128 * 64).astype(np.float32)
    scale = rng.normal(size=128).astype(np.float32)
    whole = product(rows, weight), expert(rows, page), norm(rows, scale, 1e-6)
    for at in range(len(rows)):
        for of in (slice(at, at + 1), slice(at, at + 5), slice(0, at + 1)):
            part = product(rows[of], weight), expert(rows[of], page), norm(rows[of], scale, 1e-6)
            for found, wanted in zip(part, whole, strict=True):
                np.testing.assert_array_equal(found, wanted[of])
