"""What it costs to come from the current plan of another width, as a sweep tells it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from placer.objective import Objective
from placer.placement import Placement
from placer.plan import Infeasible
from placer.report.sweep import advice_json, resize_names, resize_rows, sweep_tables
from placer.resize.price import Price
from placer.trials import Case, Study, evaluate
from placer.whatif import Advice, advise
from tests.builders import a_model, a_placement, a_topology, by_hand, loads

PAGE = 192  # bytes of an expert of ``a_model``
RUNNING = a_placement([[0, 1, 2, 3]] * 2)


def a_study(**more: Any) -> Study:
    """An expert takes a token a microsecond, a step has 8 tokens a GPU; 7, 5, 3 and 1 in 16."""
    profile = loads([[7e9, 5e9, 3e9, 1e9]] * 2)
    given = {"current": RUNNING, **more}
    return Study(given.pop("model", a_model()), profile, Objective(tokens_per_gpu=8), **given)


def a_case(gpus: int, redundant: int = 0) -> Case:
    return Case(by_hand(gpus), redundant, "allgather")


def priced(study: Study, case: Case) -> Price:
    found = evaluate(study, case).resize
    assert isinstance(found, Price)
    return found


def test_each_old_gpu_keeps_an_expert_and_each_new_one_gets_one() -> None:
    found = priced(a_study(model=a_model(other_bytes=1000)), a_case(4))
    # In both layers; the other two pages of each old GPU stay until the switch.
    assert (found.kept + found.remapped, found.copied, found.loaded) == (4, 4, 0)
    assert found.p2p_bytes == 4 * PAGE + 2 * 1000
    assert (found.network_bytes, found.disk_bytes) == (0, 0)
    assert found.peak_bytes == 4 * PAGE + 1000
    # Of the 32 tokens of a step, 14 are the hot expert's.
    assert found.step_s == pytest.approx(2 * 14e-6)
    assert found.seconds.total == pytest.approx(0.02 + 0.6e-3 + 2 * 25e-6)


def test_the_last_ranks_give_their_experts_to_the_first() -> None:
    found = priced(a_study(), a_case(1))
    assert (found.kept, found.remapped, found.copied) == (4, 0, 4)
    assert found.p2p_bytes == 4 * PAGE
    assert found.peak_bytes == 8 * PAGE


def test_the_same_width_and_no_current_plan_have_no_price() -> None:
    assert evaluate(a_study(), a_case(2)).resize is None
    assert evaluate(a_study(current=None), a_case(4)).resize is None


def test_a_price_leaves_all_other_figures_as_they_are() -> None:
    without = evaluate(a_study(current=None), a_case(4))
    assert replace(evaluate(a_study(), a_case(4)), resize=None) == without


def test_what_a_dead_rank_held_is_read_from_disk() -> None:
    broken = a_placement([[0, 1, -1, -1]] * 2)
    found = priced(a_study(current=broken), a_case(4))
    assert found.loaded == 4
    assert found.disk_bytes == 4 * PAGE


@pytest.mark.parametrize(
    ("study", "reason"),
    [
        (a_study(runs_on=a_topology(2)), "the current plan runs on h100: give that --topology"),
        (a_study(current=Placement(RUNNING.physical_to_logical, 5, 2)), "cannot become"),
        (a_study(current=a_placement([[0, 1, 2, 3]] * 2, nodes=2)), "its devices are not so"),
    ],
)
def test_a_width_that_cannot_be_reached_says_why_and_keeps_its_other_figures(
    study: Study, reason: str
) -> None:
    found = evaluate(study, a_case(4))
    assert isinstance(found.resize, Infeasible)
    assert reason in found.resize.reason
    assert found.after is not None


def test_pages_that_do_not_fit_together_name_the_widths_that_do() -> None:
    """A GPU may use 9,000 bytes. Going to one GPU needs 8 pages and what is dense: 9,036."""
    found = evaluate(a_study(model=a_model(other_bytes=9000 - 7 * PAGE)), a_case(1))
    assert found.problem.endswith("use at least 2 GPUs")
    held = a_placement([[0, 1, 2, 3, 2, 3, 0, 1]] * 2)
    found = evaluate(
        a_study(model=a_model(other_bytes=9000 - 8 * PAGE), current=held), a_case(4, redundant=4)
    )
    assert isinstance(found.resize, Price)
    assert found.resize.copied + found.resize.remapped + found.resize.kept == 16


# In tables and JSON


def an_advice(study: Study) -> Advice:
    return advise(study, [a_case(2), a_case(3), a_case(4), a_case(4, redundant=1)], map)


def test_a_row_a_case_of_another_width() -> None:
    rows = resize_rows(an_advice(a_study()), sized=True)
    named = [dict(zip(resize_names(True), row, strict=True)) for row in rows]
    assert [row["topology"] for row in named] == [
        "3 GPUs in 1 node (by hand)",
        "4 GPUs in 1 node (by hand)",
    ]
    four = named[1]
    assert (four["copy"], four["load"], four["p2p"]) == ("50%", "0%", "768 bytes")
    assert (four["peak/GPU"], four["seconds"], four["step, ms"]) == ("768 bytes", "0.02", "0.03")


def test_a_reason_stands_for_the_figures_where_there_is_no_way() -> None:
    advice = an_advice(a_study(runs_on=a_topology(2)))
    rows = resize_rows(advice, sized=True)
    assert [row[3:] for row in rows] == [
        ["the current plan runs on h100: give that --topology"]
    ] * 2
    texts = [text for text in sweep_tables(advice, True) if isinstance(text, str)]
    assert "  0: no resize: the current plan runs on h100: give that --topology" in texts


def test_the_object_of_a_case_holds_its_resize() -> None:
    same, three, four, refused = advice_json(an_advice(a_study()), sized=True)["cases"]
    assert same["resize"] is refused["resize"] is None
    assert three["resize"]["problem"] is None
    assert four["resize"]["p2p_bytes"] == 4 * PAGE
    assert four["resize"]["seconds"].keys() == {"disk", "transfer", "attach", "switch", "total"}
    json.dumps(four, allow_nan=False)


def test_a_model_of_unknown_size_has_slots_alone() -> None:
    advice = an_advice(a_study(model=a_model(sized=False)))
    four = advice_json(advice, sized=False)["cases"][2]["resize"]
    assert four["copied"] == 4
    known = {name for name, value in four.items() if value is not None}
    assert known == {"kept", "remapped", "copied", "loaded"}
    assert len(resize_rows(advice, sized=False)[0]) == len(resize_names(sized=False)) == 7


def test_no_width_has_figures_and_a_reason() -> None:
    found = advice_json(an_advice(a_study(runs_on=a_topology(2))), sized=True)["cases"][2]["resize"]
    assert {name for name, value in found.items() if value is not None} == {"problem"}
