"""Rules on the second half of the Azure hours, with the settings that they took from the first."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.size_settings import Autoscale
from simulations.arrival_files import read_arrivals
from simulations.arrivals import Arrivals
from simulations.run import Outcome, simulate

FOLDER = Path(os.environ.get("PLACER_TEST_DATA", "")) / "azure-llm-2023"
BASE = Autoscale(ttft_s=3.0, tpot_s=0.055, least=2, most=16, max_gpus=16, cooldown_s=0.0)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "PLACER_TEST_DATA" not in os.environ or not FOLDER.is_dir(),
        reason="PLACER_TEST_DATA does not name a folder with azure-llm-2023",
    ),
]


def second_half(name: str, factor: int) -> Arrivals:
    whole = read_arrivals(FOLDER / f"AzureLLMInferenceTrace_{name}.csv").times(factor)
    return whole.between(whole.seconds / 2, whole.seconds + 1)


def outcome(arrivals: Arrivals, **settings: Any) -> Outcome:
    return simulate(arrivals, replace(BASE, **settings), 0.6)


OURS: dict[str, Any] = {"load": 1.1, "quantile": 0.3}


def test_ours_is_five_points_better_than_both_with_a_quarter_less_than_the_horizontal() -> None:
    code = second_half("code", 5)
    quantile = outcome(code, stabilisation_s=10.0, **OURS)
    paper = outcome(code, policy="threshold", load=0.2, window_s=3.0, stabilisation_s=10.0, step=4)
    horizontal = outcome(
        code, policy="horizontal", requests=2.0, window_s=1.0, stabilisation_s=60.0, every_s=15.0
    )
    assert quantile.attainment >= max(paper.attainment, horizontal.attainment) + 0.05
    assert quantile.rank_s <= 0.75 * horizontal.rank_s


def test_ours_keeps_conversations_in_time_with_less_than_the_best_static_width() -> None:
    """Three ranks, which are enough, and two are not."""
    conv = second_half("conv", 2)
    quantile = outcome(conv, stabilisation_s=2.0, **OURS)
    assert quantile.attainment >= 0.99
    assert quantile.rank_s <= 1.25 * 3 * conv.seconds
