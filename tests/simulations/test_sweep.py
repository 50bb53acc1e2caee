"""Tiny sweeps: what is done is not done again, and the file is the same however it came about."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from placer.errors import FileError
from simulations.outcome import Outcome
from simulations.sweep import Case, cases_of, sweep
from tests.simulations.test_scenarios import written


def here(function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
    return map(function, arguments)


def killed(after: int) -> Callable[..., Iterator[Any]]:
    def over(function: Callable[[Any], Any], arguments: Iterable[Any]) -> Iterator[Any]:
        for count, one in enumerate(arguments):
            if count == after:
                raise KeyboardInterrupt
            yield function(one)

    return over


def cases(folder: Path) -> list[Case]:
    return cases_of([written(folder)], range(2), [], 60.0)


def test_a_sweep_has_a_line_for_each_controller_and_seed(tmp_path: Path) -> None:
    results, told = tmp_path / "lines", list[int]()
    found = sweep(cases(tmp_path), results, here, told.append)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(line["seed"], line["controller"]) for line in lines] == [
        (0, "eplb"), (0, "none"), (1, "eplb"), (1, "none"),
    ]  # fmt: skip
    assert told == [0, 1, 1, 1, 1]
    assert all(isinstance(pools["chat"], Outcome) for _, pools in found)
    assert found[0][1]["chat"].requests == lines[0]["pools"]["chat"]["requests"]


def test_what_was_killed_goes_on_and_ends_the_same_to_the_byte(tmp_path: Path) -> None:
    whole, parts, told = tmp_path / "whole", tmp_path / "parts", list[int]()
    sweep(cases(tmp_path), whole, here, told.append)
    with pytest.raises(KeyboardInterrupt):
        sweep(cases(tmp_path), parts, killed(after=2), told.append)
    parts.write_bytes(parts.read_bytes() + b'{"scenario": "ti')  # in the middle of a line
    told.clear()
    found = sweep(cases(tmp_path), parts, here, told.append)
    assert told == [2, 1, 1]
    assert parts.read_bytes() == whole.read_bytes()
    assert found == sweep(cases(tmp_path), whole, killed(after=0), told.append)


def test_another_scenario_of_that_name_is_run_anew(tmp_path: Path) -> None:
    results, told = tmp_path / "lines", list[int]()
    sweep(cases(tmp_path), results, here, told.append)
    path = written(tmp_path, every_s=20)
    sweep(cases_of([path], [0], ["none"], 60.0), results, here, told.append)
    assert told[-2:] == [0, 1]


@pytest.mark.parametrize("text", ["hello\n", "hello", '{"scenario": 1}\n'])
def test_no_other_file_is_written_to(tmp_path: Path, text: str) -> None:
    results = tmp_path / "notes"
    results.write_text(text)
    with pytest.raises(FileError, match="give another file"):
        sweep(cases(tmp_path), results, here, lambda done: None)
    assert results.read_text() == text
