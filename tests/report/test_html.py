import json
import re
from dataclasses import replace
from pathlib import Path

from placer.pace import Pace
from placer.plan import Input, Plan, Provenance, Solution
from placer.planner import make_plan, solve
from placer.report.html import plan_report
from tests.builders import a_problem, loads, random_trace


def a_page(name: str = "t.npz", with_pairs: bool = True, pace: Pace | None = None) -> str:
    traffic = random_trace(0) if with_pairs else loads([[4, 3, 2, 1]])
    problem = a_problem(traffic, slots=6)
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


def test_what_the_page_draws_has_the_right_shapes() -> None:
    found = re.search(r'id="data">(.*?)</script>', a_page(), flags=re.DOTALL)
    assert found
    data = json.loads(found[1])
    assert data["before"]["ranks"]["shape"] == "2, 2"
    assert data["experts"]["shape"] == "2, 4"
    assert data["affinity"]["steps"]["shape"] == "1, 4, 4"
    assert len(data["after"]["fanout"]) == 2


def test_bare_loads_make_a_page_too() -> None:
    assert '"affinity": null' in a_page(with_pairs=False)


def test_a_file_name_cannot_smuggle_in_markup() -> None:
    assert "<b>bold" not in a_page(name="<b>bold</b>.npz")


def test_nothing_in_the_page_depends_on_where_it_was_made() -> None:
    assert str(Path.cwd()) not in without_scripts(a_page())
