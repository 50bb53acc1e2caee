"""What is worth it: two kinds of requests with experts of their own, and requests all alike."""

from dataclasses import replace

import numpy as np
import pytest

from placer.errors import RoutingError
from placer.model import ModelShape
from placer.prediction.advice import Advice, Saving, advise
from placer.topology import Topology
from placer.trace import Trace
from tests.builders import a_topology

MODEL = ModelShape("tiny", 2, 8, 2, hidden=4096, moe_intermediate=2048)
MANY = 512  # so that halves hold about as many of either kind
# Weights may take nine tenths of it: four experts, two of the four that a GPU owns of each layer.
SMALL = replace(a_topology(2), gpu=replace(a_topology(2).gpu, hbm_bytes=5 * MODEL.expert_bytes))


def requests(alike: bool, seed: int = 0, ids: bool = True) -> Trace:
    """MANY requests of 16 tokens; of two kinds, each with four experts and tokens of its own."""
    rng, total = np.random.default_rng(seed), MANY * 16
    kind = np.repeat(rng.permutation(MANY) % 2, 16)
    chosen = rng.permuted(np.tile(np.arange(8 if alike else 4), (total * 2, 1)), axis=1)[:, :2]
    experts = chosen.reshape(-1, 2, 2) + (0 if alike else 4) * kind[:, None, None]
    # Any token, or one of the kind.
    tokens = rng.integers(100, size=total) + (0 if alike else 100) * kind
    meta = {"phase": "prefill"}
    return Trace(experts, np.full(MANY, 16), 8, tokens if ids else None, meta=meta)


def on(trace: Trace, topology: Topology | None = None, *others: Trace) -> Advice:
    return advise(MODEL, topology or a_topology(2), [trace, *others])


def saving(found: Advice, way: str) -> Saving:
    return next(one for one in found.savings if one.way == way)


def test_requests_with_experts_of_their_own_are_worth_sending_to_them() -> None:
    found = on(requests(alike=False))
    scheduled = saving(found, "pre-scheduling")
    assert (found.best, scheduled.verdict) == ("pre-scheduling", "worth_it")
    assert scheduled.saved_s > 3 * scheduled.error_s
    assert scheduled.share == pytest.approx(scheduled.saved_s / found.step_s)
    assert scheduled.elsewhere_s is None
    assert any("other traffic is not known" in note for note in found.notes)


def test_requests_that_are_all_alike_are_not() -> None:
    found = on(requests(alike=True))
    assert found.best == "neither"
    assert {one.verdict for one in found.savings} == {"not_worth_it"}


def test_where_every_expert_has_room_nothing_is_loaded_or_cached() -> None:
    found = on(requests(alike=True))
    for way in ("prefetching", "expert caching"):
        assert saving(found, way).saved_s == 0
        assert "every expert fits in the memory of 2 GPUs" in saving(found, way).reason


def test_where_it_has_not_loading_ahead_is_worth_it() -> None:
    trace = requests(alike=True)
    same = replace(trace, expert_ids=np.repeat(trace.expert_ids[:, :1], 2, axis=1))
    found = on(same, SMALL)  # the second layer's experts are the first one's
    assert saving(found, "prefetching").verdict == "worth_it"
    # All experts are used alike, and all of them in every step: none is better kept.
    assert saving(found, "expert caching").verdict == "not_worth_it"


def test_without_token_ids_it_is_an_upper_bound_and_not_known() -> None:
    found = on(requests(alike=False, ids=False))
    scheduled = saving(found, "pre-scheduling")
    assert (found.best, scheduled.verdict) == ("neither", "not_known")
    assert "an upper bound: the trace has no token ids" in scheduled.reason


def test_generated_tokens_are_not_known_when_a_home_is_chosen() -> None:
    found = on(replace(requests(alike=False), meta={"phase": "decode"}))
    scheduled = saving(found, "pre-scheduling")
    assert (found.best, scheduled.verdict) == ("neither", "not_known")
    assert "these tokens were generated" in scheduled.reason


def test_what_it_saves_elsewhere_is_told_of_several_kinds_of_traffic() -> None:
    other = requests(alike=False, seed=1)
    assert other.token_ids is not None
    swapped = replace(other, token_ids=(other.token_ids + 100) % 200)  # each kind says the other's
    found = on(requests(alike=False), None, swapped)
    scheduled = saving(found, "pre-scheduling")
    assert scheduled.elsewhere_s is not None
    assert scheduled.elsewhere_s < scheduled.saved_s
    assert not any("other traffic is not known" in note for note in found.notes)


def test_a_trace_of_one_request_cannot_be_judged() -> None:
    one = requests(alike=True).select(np.arange(MANY) == 0)
    with pytest.raises(RoutingError, match="a trace of one sequence cannot be split"):
        on(one)
