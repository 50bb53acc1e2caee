"""Each paper's claim in a small size, and what its table says of itself."""

from dataclasses import replace

import numpy as np
import pytest

from placer.errors import PlacerError
from placer.model import ModelShape
from placer.topology import GB, Link
from simulations.papers import eplb, exflow, moetuner, overlap, tables
from simulations.papers.table import Row, Table
from tests.builders import a_model, a_topology, a_trace, loads


def of(table: Table, what: str) -> Row:
    return next(row for row in table.rows if row.what == what)


def ours(table: Table, what: str) -> float:
    found = of(table, what).ours
    assert found is not None
    return found


def test_moetuner_takes_a_third_off_a_hot_gpus_load_and_more_where_sizes_may_differ() -> None:
    """Of the mean layer in one node the paper has -34.8%."""
    one_node, _ = moetuner.tables(2)
    even, uneven = (ours(one_node, f"{sizes} sizes: load, average") for sizes in ("even", "uneven"))
    assert uneven < even == pytest.approx(-0.348, abs=0.05)
    assert ours(one_node, "even sizes: all-to-all, average") < -0.354
    assert 0.64 < ours(one_node, "a layer's tokens on one GPU, before") < 0.69


def test_experts_that_always_follow_each_other_share_a_gpu_and_no_token_changes_it() -> None:
    """A random placement of 2 GPUs has tokens leave half of the time."""
    shape = ModelShape("pairs", 3, 4, 1, 8, 8)
    rows = [[[one], [(one + 1) % 4], [(one + 2) % 4]] for one in range(4)]
    trace = a_trace(rows * 20, seq_lens=[4] * 20)
    assert exflow.at_random(shape.layers, 2) == 1.0
    assert exflow.crossings(shape, trace, 2, 0) == -1.0


def test_a_random_placement_crosses_as_often_as_the_paper_says() -> None:
    assert exflow.at_random(32, 4) == 23.25
    assert exflow.at_random(32, 8) == pytest.approx(27.13, abs=0.01)


def test_the_more_affinity_experts_have_the_fewer_crossings_and_the_more_gpus_the_more() -> None:
    shape = ModelShape("chain", 4, 8, 1, 8, 8)
    none, some, much = (
        exflow.crossings(shape, exflow.follows(shape, affinity, 3000, 0), 4, 0)
        for affinity in (0.0, 1.0, 3.0)
    )
    assert much < some < none
    assert none == pytest.approx(0.0, abs=0.05)
    on_8 = exflow.crossings(shape, exflow.follows(shape, 1.0, 3000, 0), 8, 0)
    assert some < on_8 < none


def test_eplb_evens_out_what_two_hot_experts_on_one_gpu_do_not() -> None:
    """Experts of 3, 3, 1 and 1 tokens: 6 and 2 on the GPUs before, then 4 and 4."""
    problem = eplb.problem(a_model(1), loads([[3, 3, 1, 1]]), 2, 4, 8192)
    before, after, faster = eplb.sped(replace(problem, topology=a_topology(2)))
    assert (before, after) == (4 / 6, 1.0)
    assert 1.0 < faster <= 1.5 + 1e-9


def test_overlap_wins_at_most_what_communication_takes_and_nothing_without_any() -> None:
    gone = Link(1e30, 0.0)
    fast = replace(overlap.H800, local=gone, network=gone)
    for link in (overlap.H800, replace(overlap.H800, local=Link(1 * GB, 0.0)), fast):
        case = replace(overlap.CASES[0], topology=link)
        sent, faster = overlap.figures(case, 0)
        assert 1.0 <= faster <= 1 / (1 - sent) + 1e-9
    assert sent == pytest.approx(0.0, abs=1e-9)  # of the last, whose links take no time
    assert faster == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["moetuner", "eplb", "overlap"])
def test_rows_are_numbers_and_say_how_they_were_made(name: str) -> None:
    for table in tables(name, seeds=1):
        assert table.about.endswith(".")
        for row in table.rows:
            assert row.ours is not None
            assert np.isfinite(row.ours)
            assert row.told[1] == row.form.format(row.ours)


def test_a_paper_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(PlacerError, match="moetuner"):
        tables("moetune")
