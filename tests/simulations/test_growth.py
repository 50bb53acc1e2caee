"""A control plane of a few agents, and what is said of its growth."""

from dataclasses import replace
from pathlib import Path

import pytest

from simulations.growth import TOLD, Grown, measure, picture, slopes


def test_a_slope_of_one_is_linear() -> None:
    first = Grown(100, 1, *[2.0] * len(TOLD))
    twice = replace(first, gpus=200, look_s=4.0, plans_s=8.0)
    found = slopes([first, twice])
    assert found["look_s"] == pytest.approx(1.0)
    assert found["plans_s"] == pytest.approx(2.0)
    assert found["change_bytes"] == pytest.approx(0.0)
    page = picture({"many pools": [first, twice]})
    assert all(what in page for what in TOLD.values())


def test_every_pool_has_its_plan_and_all_is_counted(tmp_path: Path) -> None:
    one, two = (measure(pools, 1, tmp_path, "qwen3-30b-a3b") for pools in (1, 2))
    assert two.gpus == 2 * one.gpus == 48
    assert one.agents_bytes_per_s > 24 * 48 * 128 * 4 / 10  # counts, a push of each in ten seconds
    assert two.agents_bytes_per_s == pytest.approx(2 * one.agents_bytes_per_s, rel=0.01)
    assert two.change_records == pytest.approx(2 * one.change_records, rel=0.2)
    assert two.changed_after_s < 3600
