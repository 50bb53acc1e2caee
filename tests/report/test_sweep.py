import json
from typing import Any

from placer.objective import Objective
from placer.report.sweep import advice_json, names, sweep_rows
from placer.trials import Case, Study
from placer.whatif import Advice, advise
from tests.builders import a_model, by_hand, loads


def an_advice() -> Advice:
    """On 2 GPUs a step takes 24, 16 and 16 us with 0, 2 and 4 slots more, on 4 GPUs 40 us."""
    study = Study(a_model(), loads([[80e15, 16e15, 16e15, 16e15]] * 2), Objective(tokens_per_gpu=8))
    cases = [Case(by_hand(2), slots, "allgather") for slots in (0, 1, 2, 4)]
    return advise(study, [*cases, Case(by_hand(4), 0, "allgather")], map)


def columns(sized: bool = True) -> dict[str, list[str]]:
    """The cells of the cases with an answer, by column."""
    rows = [row for row in sweep_rows(an_advice(), sized) if len(row) == len(names(sized))]
    return dict(zip(names(sized), map(list, zip(*rows, strict=True)), strict=True))


def test_knees_have_a_star_and_the_best_of_them_two() -> None:
    assert columns()["slots +"] == ["0", "2 **", "4", "0 *"]


def test_a_row_has_the_figures_of_its_case() -> None:
    found = columns()
    assert found["balance"] == ["0.6667", "1.0000", "1.0000", "0.4000"]
    assert found["gain"] == ["0.0%", "33.3%", "33.3%", "0.0%"]
    assert found["blind"][0] == found["blind"][3] == "0.0%"
    assert set(found["noise"]) == {"0.0%"}
    assert found["step, ms"] == ["0.02", "0.02", "0.02", "0.04"]
    assert found["tok/s/GPU"] == ["333,333", "500,000", "500,000", "200,000"]
    assert set(found["moved"] + found["GPUs/tok"]) == {"-"}


def test_a_model_of_unknown_size_has_neither_times_nor_bytes() -> None:
    assert not {"step, ms", "tok/s/GPU", "KV, GB"} & set(columns(sized=False))
    best: dict[str, Any] = advice_json(an_advice(), sized=False)["best"]
    timed = {name for name, value in best.items() if value is None}
    assert timed >= {"step_ms_before", "step_ms_after", "tokens_per_s_per_gpu", "kv_bytes_per_gpu"}
    assert best["gain"] is not None


def test_a_case_without_an_answer_has_its_reason() -> None:
    row = sweep_rows(an_advice(), sized=True)[1]
    assert row[2] == "1"
    assert row[3].startswith("5 slots do not divide by 2 GPUs")


def test_the_object_holds_every_case_in_order_and_the_best_again() -> None:
    found = advice_json(an_advice(), sized=True)
    assert found["status"] == "recommended"
    assert "33.3%" in found["reason"]
    assert [case["redundant"] for case in found["cases"]] == [0, 1, 2, 4, 0]
    assert [case["knee"] for case in found["cases"]] == [False, False, True, False, True]
    assert found["best"] == found["cases"][2]
    json.dumps(found, allow_nan=False)


def test_the_object_of_a_case_without_an_answer_has_no_figures() -> None:
    refused = advice_json(an_advice(), sized=True)["cases"][1]
    assert refused["problem"].startswith("5 slots do not divide")
    said = {name for name, value in refused.items() if value is not None}
    assert said == {"topology", "gpus", "nodes", "dispatch", "redundant", "knee", "problem"}
