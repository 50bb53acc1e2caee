"""The page of results: what it says of its tables and pictures, and that what it says exists."""

import re
import shlex
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from simulations.papers import PAPERS
from simulations.papers.table import Curves, Row, Table
from simulations.results import papers, pictures, scenarios
from simulations.results.faults import of_stories
from simulations.results.page import written
from simulations.results.section import Section, markdown
from simulations.stories.batches import tell_all
from tests.browser import needs_chromium
from tests.simulations.test_scenarios import POOL, TINY

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
WAYS = {"predicted", "calibrated", "measured"}


def sections(text: str) -> list[str]:
    return re.split(r"^### ", text, flags=re.MULTILINE)[1:]


def command_of(section: str) -> str:
    """Of the line before its table."""
    before = section[: section.index("\n|")].strip().splitlines()[-1]
    found = re.fullmatch(r"`(.+)` \((.+)\)", before)
    assert found is not None, f"no command before the table: {before}"
    assert set(found[2].split(", ")) <= WAYS
    return found[1]


def check_exists(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "placer":
        assert words[0] == "simulate"
        assert (ROOT / words[1]).exists()
        return
    assert (program, words[0]) == ("python", "-m")
    assert words[1] in ("simulations.papers", "simulations.stories")
    if words[1] == "simulations.papers":
        assert words[2] in PAPERS


@pytest.mark.parametrize("text", sections(PAGE.read_text()), ids=lambda one: one.splitlines()[0])
def test_every_figure_of_the_page_names_its_command_and_how_it_was_made(text: str) -> None:
    check_exists(command_of(text))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    at = rows[0].index("how")
    for row in rows[2:]:
        assert row[at] in WAYS
    for picture in re.findall(r"!\[.*\]\((.+)\)", text):
        assert (PAGE.parent / picture).exists()
        caption = text[text.index(f"({picture})") :].strip().splitlines()[2]
        assert f"`{command_of(text)}`" in caption
        assert any(way in caption for way in WAYS)


def test_the_page_has_all_papers_and_all_scenarios() -> None:
    commands = [command_of(one) for one in sections(PAGE.read_text())]
    for name in PAPERS:
        assert any(f"simulations.papers {name} " in command for command in commands)
    for path in {run.path for run in scenarios.runs(60.0, full=False)}:
        assert any(path.name in command for command in commands)


def test_a_row_is_told_as_published_and_as_ours_and_says_why_they_differ() -> None:
    table = Table("T", "About.", [Row("a|b", (0.1, 0.2), 0.5, "measured", why="Other traffic.")])
    section = papers.of_table(table, "python -m x")
    told = markdown(section, None)
    assert "| a/b | +10.0% to +20.0% | +50.0% | measured | Other traffic. |" in told
    assert "`python -m x` (measured)" in told
    assert section.figure is None  # one bar is no picture


def test_pictures_stand_beside_the_page_under_their_sections_names(tmp_path: Path) -> None:
    plain = Section("Some, one", "About.", "python -m x", "measured", ("a",), [("1",)])
    shown = Section("A: b", "About.", "python -m y", "predicted", ("a",), [("1",)], figure={})
    text, files = written({"P": [plain, shown]}, ["<svg/>"], tmp_path / "page.md", "make it")
    assert files == {tmp_path / "page" / "a-b.svg": "<svg/>"}
    assert text.count("![") == 1
    assert "![A: b](page/a-b.svg)" in text
    assert "make it" in text
    assert "![" not in written({"P": [plain, shown]}, [], tmp_path / "page.md", "make it")[0]


def test_curves_are_drawn_and_else_what_has_both_figures_in_one_form() -> None:
    rows = [Row(f"{at}", (float(at),), 1.0, "predicted", "{:.1f}") for at in range(3)]
    rows.append(Row("share", (0.1,), 0.1, "predicted"))
    figure = papers.of_table(Table("T", "About.", rows), "x").figure
    assert figure is not None
    assert [list(one["y"]) for one in figure["data"]] == [["0", "1", "2"]] * 2
    curves = Curves("rate", "in time", {"ours": ([1, 2], [0.9, 0.8])})
    figure = papers.of_table(Table("T", "About.", rows, curves), "x").figure
    assert figure is not None
    assert figure["data"][0]["y"] == [0.9, 0.8]


def test_a_scenario_is_told_by_controller_as_placer_simulate_does(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text("# Two engines\n# of four.\n" + yaml.safe_dump({**TINY, "scheduled": 5}))
    every = [scenarios.Run(path, name, 60.0) for name in ("none", "eplb")]
    section = scenarios.of_scenario({run: scenarios.ran(run) for run in every})
    assert section.about == "Two engines of four."
    assert section.columns == ("figure", "none", "eplb", "how")
    assert [row[0] for row in section.rows][:2] == ["requests answered", "requests in time"]
    assert {row[-1] for row in section.rows} == {"predicted"}
    assert any("scheduler" in note for note in section.notes)
    assert section.notes[-1] == "The first 1 minutes of it."
    assert section.command.endswith("tiny.yaml --seed 0 --seconds 60")
    assert section.figure is not None


@pytest.mark.parametrize(
    ("ours", "other", "told"),
    [
        ((0.99, 8.0, 10), (0.99, 10.0, 0), "+0.00 points in time, -20.0% GPU hours: better."),
        ((0.95, 10.0, 1), (0.9, 10.0, 4),
         "+5.00 points in time, +0.0% GPU hours, 0.25 of its bytes moved: better."),
        ((0.9, 10.0, 1), (0.901, 10.0, 4),
         "-0.10 points in time, +0.0% GPU hours, 0.25 of its bytes moved: as good."),
        ((0.9, 10.0, 0), (0.9, 10.0, 0), "+0.00 points in time, +0.0% GPU hours: no better."),
        ((0.999, 10.0, 0), (0.999, 10.0, 0), "+0.00 points in time, +0.0% GPU hours: no better: "
         "at this load both keep the objectives."),
        ((0.9, 8.0, 0), (0.95, 10.0, 0), "-5.00 points in time, -20.0% GPU hours: worse."),
        ((0.95, 12.0, 0), (0.9, 10.0, 0), "+5.00 points in time, +20.0% GPU hours: worse."),
    ],
)  # fmt: skip
def test_the_loop_is_compared_with_each_that_does_a_part_of_it(
    ours: tuple[float, float, int], other: tuple[float, float, int], told: str
) -> None:
    """In time, GPU hours and bytes moved; more in time for more GPU hours is no gain by itself."""

    def of(in_time: float, gpu_hours: float, moved: int) -> Any:
        pool = Mock(attainment=in_time, requests=100, gpu_hours=gpu_hours, moved_bytes=moved)
        return Mock(pools={"chat": pool})

    found = {"none": of(0.5, 10.0, 0), "eplb": of(*other), "placer": of(*ours)}
    assert list(scenarios.compared(found)) == [f"placer against eplb: {told}"]


def test_many_pools_are_told_by_their_means(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "pools": {f"p{at}": POOL for at in range(5)}}))
    run = scenarios.Run(path, "none", 60.0)
    section = scenarios.of_scenario({run: scenarios.ran(run)})
    assert [row[0] for row in section.rows][1] == "GPU hours, mean of 5 pools"
    assert section.rows[1][1] == "0.1 (0.1 to 0.1)"  # 8 ranks for a minute each


def test_stories_are_added_up() -> None:
    batches = [tell_all([0]), tell_all([1, 2])]
    section = of_stories(batches)
    assert section.command.endswith("--seeds 0:3")
    assert section.rows[0][0] == "3"
    assert section.rows[0][-2:] == ("0", "measured")


@needs_chromium
def test_plotly_draws_in_a_real_chromium() -> None:
    line = {"in time": {"none": ([0, 1], [1, 0])}, "GPUs": {"none": ([0, 1], [8, 8])}}
    bars = pictures.bars("Bars", ["a<b"], {"ours": [0.5]}, "{:.0%}")
    found = pictures.drawn([bars, pictures.lines("Lines", line, "hours")])
    assert found is not None
    first, second = found
    assert first.startswith("<svg")
    assert "50%" in first
    assert "hours" in second
