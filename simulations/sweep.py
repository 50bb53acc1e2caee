"""Scenarios, controllers and seeds, side by side: a line of JSON each, and once each."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from placer.errors import FileError
from placer.parallel import Map
from simulations.outcome import Outcome, simulate
from simulations.scenario import Scenario

BEGINS = b'{"scenario":'
SHOWN = 12  # of a digest's characters: whoever reads a line may compare


@dataclass(frozen=True, slots=True)
class Case:
    """file: the beginning of the scenario's digest; seconds: of it that are run"""

    path: Path
    file: str
    controller: str
    seed: int
    seconds: float

    @property
    def key(self) -> Mapping[str, Any]:
        """How its line begins. That scenarios lie elsewhere makes no difference."""
        return {
            "scenario": self.path.name,
            "file": self.file,
            "controller": self.controller,
            "seed": self.seed,
            "seconds": self.seconds,
        }


def cases_of(
    paths: Sequence[Path], seeds: Iterable[int], controllers: Sequence[str], seconds: float | None
) -> list[Case]:
    """controllers: only these, or all of each scenario. Raises FileError."""
    found = []
    for path in paths:
        scenario = Scenario(path)
        scenario.check(controllers)
        file = sha256(path.read_bytes()).hexdigest()[:SHOWN]
        lasts_s = min(seconds or scenario.seconds, scenario.seconds)
        found += [
            Case(path, file, name, seed, lasts_s)
            for seed in seeds
            for name in controllers or scenario.controllers
        ]
    return found


def line_of(case: Case) -> str:
    """The same case gives the same bytes, wherever it is run."""
    scenario = Scenario(case.path)
    told = simulate(scenario.part(case.seconds), case.controller, case.seed)
    pools = {name: asdict(outcome) for name, outcome in told.pools.items()}
    return json.dumps({**case.key, "pools": pools}, allow_nan=False)


def sweep(
    cases: Sequence[Case], results: Path, over: Map, done: Callable[[int], None]
) -> list[tuple[Case, Mapping[str, Outcome]]]:
    """All of them, of which those that ``results`` has are not run again. done: is told how many
    more are. Lines are written as they are ready, in the order of cases.

    Raises FileError for a file that holds something else.
    """
    known = _read(results)
    missing = [case for case in cases if _word(case.key) not in known]
    done(len(cases) - len(missing))
    with results.open("a", encoding="utf-8") as file:
        for case, line in zip(missing, over(line_of, missing), strict=True):
            file.write(f"{line}\n")
            file.flush()
            known[_word(case.key)] = json.loads(line)["pools"]
            done(1)
    return [
        (case, {name: Outcome(**of) for name, of in known[_word(case.key)].items()})
        for case in cases
    ]


def _read(results: Path) -> dict[str, Any]:
    """What is done, by its case. What a run that was killed left of a line is cut off."""
    if not results.exists():
        return {}
    told = results.read_bytes()
    whole = told[: told.rfind(b"\n") + 1]
    found = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(line)
            pools = row.pop("pools")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise FileError(
                f"{results}, line {number}: no result of a sweep: give another file"
            ) from error
        found[_word(row)] = pools
    if not found and not told.startswith(BEGINS[: len(told)]):
        raise FileError(f"{results} is no file of a sweep's results: give another file")
    if whole != told:
        with results.open("r+b") as file:
            file.truncate(len(whole))
    return found


def _word(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
