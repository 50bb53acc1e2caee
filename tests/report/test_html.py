import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from placer.pace import Pace
from placer.plan import Input, Plan, Provenance, Solution
from placer.planner import make_plan, solve
from placer.profile import Profile
from placer.report.html import plan_report
from placer.trace import Trace
from tests.builders import a_problem, loads, random_trace


def a_page(
    name: str = "t.npz", traffic: Trace | Profile | None = None, pace: Pace | None = None
) -> str:
    problem = a_problem(traffic or random_trace(0), slots=6)
    problem = replace(problem, profile=replace(problem.profile, pace=pace))
    solution = solve(problem, "eplb")
    assert isinstance(solution, Solution)
    plan = make_plan(problem, solution, Provenance("eplb", {}, (Input(name, "00ff", 40),)))
    assert isinstance(plan, Plan)
    return plan_report(plan, problem.profile, problem.start)


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_the_page_asks_the_network_for_nothing() -> None:
    page = a_page()
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=", without_scripts(page))


def test_the_page_shows_the_figures_and_the_moves() -> None:
    text = without_scripts(a_page())
    for part in ("balancedness, mean", "GPUs a token", "From layer to layer", "Moves", "sha256:"):
        assert part in text


def test_the_page_says_what_is_saved_of_a_whole_step_where_that_was_measured() -> None:
    told = re.compile(r"of a whole step, which takes 20 ms as measured, the plan saves \d+\.\d%")
    assert told.search(without_scripts(a_page(pace=Pace(100, 2.0, 10.0))))
    assert "of a whole step" not in without_scripts(a_page())


def drawn(page: str) -> Any:
    found = re.search(r'id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert found
    return json.loads(found[1])


def test_what_the_page_draws_has_the_right_shapes() -> None:
    data = drawn(a_page())
    assert data["before"]["ranks"]["shape"] == "2, 2"
    assert data["experts"]["shape"] == "2, 4"
    assert data["affinity"]["steps"]["shape"] == "1, 4, 4"
    assert len(data["after"]["fanout"]) == 2


def test_bare_loads_and_a_single_layer_make_a_page_too() -> None:
    for traffic in (loads([[4, 3, 2, 1]]), random_trace(0, layers=1)):
        assert drawn(a_page(traffic=traffic))["affinity"] is None


def test_what_goes_from_layer_to_layer_is_a_share_of_all_tokens() -> None:
    # Layer 0 never ran. Of 4 tokens three go from expert 0 to 1, and one from 2 to 3.
    between = np.zeros((2, 4, 4))
    between[1, 0, 1], between[1, 2, 3] = 3, 1
    load = np.array([[0, 0, 0, 0], [3, 0, 1, 0], [0, 3, 0, 1]])
    found = drawn(a_page(traffic=Profile(load, 1, 4, 1, transitions=between)))
    assert found["affinity"]["peak"] == [1e-9, 75]


def test_a_file_name_cannot_smuggle_in_markup() -> None:
    assert "<b>bold" not in a_page(name="<b>bold</b>.npz")


def test_nothing_in_the_page_depends_on_where_it_was_made() -> None:
    assert str(Path.cwd()) not in without_scripts(a_page())
