"""ElasticMoE's setting: 64 experts in 26 layers, from 3 to 4 devices."""

import math
from itertools import pairwise

import pytest

from simulations.papers.elasticmoe import costs
from simulations.papers.elasticmoe.serving import Change, throughputs
from simulations.papers.elasticmoe.slo import in_time
from simulations.papers.elasticmoe.ways import ALL_OF_IT, RESTART, SHAPE, Way, change, seconds
from tests.simulations.papers.test_papers import of, ours


def test_going_up_copies_what_devices_lack_and_reads_nothing() -> None:
    """A quarter of the experts and its own dense weights; of a linear map another old device gets 4
    of its neighbour's, as experts 32 to 47 were on two."""
    way = change(ALL_OF_IT, 3, 4)
    assert way.p2p_bytes == (16 + 4) * 26 * SHAPE.expert_bytes + SHAPE.other_bytes
    assert way.disk_bytes == 0


def test_a_restart_reads_all_experts_and_four_times_what_is_dense() -> None:
    way = change(RESTART, 3, 4)
    assert way.disk_bytes == 64 * 26 * SHAPE.expert_bytes + 4 * SHAPE.other_bytes
    assert way.p2p_bytes == 0


def test_each_rung_of_the_ladder_is_slower_than_the_one_above() -> None:
    rungs = [ALL_OF_IT, Way(p2p=False), Way(p2p=False, standbys=False)]
    for one, next_ in pairwise(seconds(way, 3, 4) for way in rungs):
        assert one < next_
    assert seconds(rungs[-1], 4, 3) < seconds(RESTART, 4, 3)


def test_the_ladder_is_the_papers_where_it_was_fitted_and_says_so() -> None:
    table = costs.ladder()
    fitted = [row for row in table.rows if row.how == "calibrated"]
    assert [row.what for row in fitted] == list(costs.FITTED)
    for row in fitted:
        assert row.ours == pytest.approx(row.published[0])
    nothing = of(table, "without its IPC allocator, up")
    assert nothing.ours is None
    assert nothing.why


def test_an_elastic_change_peaks_far_under_two_instances_at_once() -> None:
    """3 and 4 devices are 7, where it has 4: 43% less, but for the pages of both widths."""
    table = costs.baselines()
    assert -0.43 < ours(table, "peak memory under two at once") < -0.35


def test_requests_go_on_through_an_elastic_change_and_not_through_a_restart() -> None:
    """Both come to a third more ranks."""
    during, after = throughputs(Change(2.4), 60.0, seed=0)
    assert during > 0.95
    assert 1.1 < after < 1.4
    during, after = throughputs(Change(60.0, serves=False), 60.0, seed=0)
    assert during < 0.2
    assert after > 1.1


def test_the_quicker_a_change_is_the_more_requests_of_a_rush_are_in_time() -> None:
    quick, slow, never = (in_time(20.0, delay_s, seed=0) for delay_s in (2.4, 60.0, math.inf))
    assert never < slow < quick
