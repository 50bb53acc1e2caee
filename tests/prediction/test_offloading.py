"""Experts of 192 bytes that memory has no room for, on 2 GPUs with room for one of their two."""

import pytest

from placer.prediction.offloading import HOST_BYTES_PER_S, offloaded
from tests.builders import a_model, a_placement, a_trace

EACH_S = a_model().expert_bytes / HOST_BYTES_PER_S
MANY = 10**6  # tokens: whoever is used at all is needed in every step
# Experts 1 and 3 alone are used; one of each on either GPU.
TRACE = a_trace([[[1], [3]], [[3], [1]]])
LINEAR = a_placement([[0, 1, 2, 3]] * 2)


def loading(layer_s: float, layers: int = 2) -> tuple[float, float, float]:
    """In experts: kept blind, kept by use, asked for ahead."""
    trace = a_trace([token[:layers] for token in TRACE.expert_ids.tolist()])
    placement = a_placement([[0, 1, 2, 3]] * layers)
    found = offloaded(a_model(layers), placement, trace, trace, 1, MANY, layer_s)
    return found.blind_s / EACH_S, found.cached_s / EACH_S, found.prefetched_s / EACH_S


def test_a_cache_of_the_most_used_needs_to_load_nothing() -> None:
    blind, cached, _ = loading(0)
    assert blind == pytest.approx(2)  # 0 and 2 are kept: each GPU loads one a layer
    assert cached == 0


def test_what_is_asked_for_ahead_hides_behind_the_layer_before() -> None:
    assert loading(EACH_S)[2] == pytest.approx(1)  # the first layer's, which nobody foretold
    assert loading(EACH_S / 4)[2] == pytest.approx(1.75)
    assert loading(0)[2] == pytest.approx(2)


def test_of_one_layer_nothing_is_known_ahead() -> None:
    blind, _, ahead = loading(1, layers=1)
    assert ahead == pytest.approx(blind)


def test_what_is_foretold_wrongly_is_loaded_for_nothing() -> None:
    # Fitted on 1 -> 3 and 3 -> 1; now 1 -> 1 and 3 -> 3, of which in a step both come: the right
    # experts are asked for, but never by a token that uses them.
    other = a_trace([[[1], [1]], [[3], [3]]])
    found = offloaded(a_model(), LINEAR, TRACE, other, 1, MANY, EACH_S)
    assert found.prefetched_s / EACH_S == pytest.approx(2)


def test_a_step_of_few_tokens_needs_few_experts() -> None:
    # Half a token for each of the two experts: 1 - exp(-1/2).
    found = offloaded(a_model(), LINEAR, TRACE, TRACE, 1, 1, 0)
    assert found.blind_s / EACH_S == pytest.approx(2 * 0.39346934)
