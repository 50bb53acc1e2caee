"""Four kinds of requests, each of which uses an expert of its own."""

import numpy as np

from placer.model import ModelShape
from placer.trace import Trace
from simulations.papers import eldr, semmoe
from simulations.streams.worlds import Requests, World
from tests.simulations.papers.test_papers import ours

KINDS, EACH, TOKENS = 4, 16, 32
SHAPE = ModelShape("kinds", 2, KINDS, 1, 64, 64)


def kinds(decodes: bool) -> World:
    """The prompt of a request of kind k is the token k, again and again. Four of each length, so
    that they do not all end at once."""
    lens = np.repeat(TOKENS - EACH + 2 * np.arange(EACH), KINDS)
    kind = np.repeat(np.tile(np.arange(KINDS), EACH), lens)
    ids = np.repeat(kind[:, None, None], SHAPE.layers, axis=1)
    served = Trace(ids, lens, KINDS, token_ids=kind)
    return World("kinds", SHAPE, Requests(served, kind, lens), decodes)


def test_requests_go_to_the_gpu_of_their_expert_where_tables_say_so() -> None:
    """The least loaded finds it a quarter of the time."""
    table = semmoe.table(kinds(decodes=False), 1)
    assert 0.15 < ours(table, "requests to the least loaded") < 0.35
    assert ours(table, "requests by placer's own") > 0.8
    assert ours(table, "tokens, layer by layer") == 1.0


def test_an_engine_whose_requests_are_of_one_kind_reads_one_expert_and_its_tokens_come_sooner() -> (
    None
):
    """ELDR's batches are less even for it. Placer's engines get as many tokens in each window, so
    that some of a kind of which more come than that have to go elsewhere."""
    table = eldr.table(kinds(decodes=True), 1)
    for name, fewer in (("eldr, band 5%", 0.7), ("placer's scheduler", 0.25)):
        assert ours(table, f"{name}: experts read a step") < -fewer
        assert ours(table, f"{name}: median TPOT") < 0
    uneven = [
        ours(table, f"{name}: the largest batch")
        for name in ("eldr, band 5%", "placer's scheduler")
    ]
    assert uneven[1] < uneven[0]
