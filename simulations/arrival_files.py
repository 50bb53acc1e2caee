"""Requests that came somewhere, as traces are published: Azure's and BurstGPT's csv, Mooncake's and
ServeGen's JSON lines. Which of them a file is, its first line tells."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from placer.errors import FileError
from simulations.arrivals import Arrivals, Prefixes

HOLE_S = 3600.0  # without a request: a trace that was cut together
MOST_TOKENS = 10_000_000
BLOCKS, BLOCK_TOKENS = "hash_ids", 512  # as Mooncake's trace has them


class _Form(NamedTuple):
    """at, prompt, output: columns or keys; read: the first's seconds"""

    name: str
    at: str
    prompt: str
    output: str
    read: Callable[[Any], float]


def _instant(stamp: str) -> float:
    """Azure's stamps have seven digits of a second, of which Python reads six."""
    return datetime.fromisoformat(str(stamp)[:26]).timestamp()


FORMS = (
    _Form("Azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens", _instant),
    _Form("BurstGPT", "Timestamp", "Request tokens", "Response tokens", float),
    _Form("Mooncake", "timestamp", "input_length", "output_length", lambda ms: float(ms) / 1000),
    _Form("ServeGen", "timestamp", "input_tokens", "output_tokens", float),
)


def read_arrivals(path: Path, longest: int = MOST_TOKENS, holes: bool = False) -> Arrivals:
    """longest: tokens of a prompt and its answer that the model has room for; holes: whether hours
    without a request are meant. Raises FileError with the line that is at fault."""
    form, rows = _rows(path)
    told: list[tuple[float, int, int]] = []
    blocks: list[Sequence[int]] = []
    for line, row in rows:
        where = f"{path}, line {line}"
        try:
            at_s, prompt, output = form.read(row[form.at]), row[form.prompt], row[form.output]
            one = float(at_s), int(prompt), int(output)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(
                f"{where}: no request of {form.name}'s form ({form.at}, {form.prompt}, "
                f"{form.output}): mend or remove the line"
            ) from error
        if one[2] < 1:  # failed where it was recorded
            continue
        if not np.isfinite(one[0]) or one[1] < 1:
            raise FileError(f"{where}: {one[1]} prompt tokens at {one[0]}: mend or remove the line")
        if one[1] + one[2] > longest:
            raise FileError(
                f"{where}: {one[1]:,} + {one[2]:,} tokens are more than the context of "
                f"{longest:,}: give a larger context, or cut such requests"
            )
        if told and one[0] < told[-1][0]:
            raise FileError(
                f"{where}: the clock steps back by {told[-1][0] - one[0]:g} s: sort the trace"
            )
        if told and one[0] - told[-1][0] > HOLE_S and not holes:
            hours = (one[0] - told[-1][0]) / 3600
            raise FileError(
                f"{where}: no request for {hours:.1f} h before it: cut the trace there, or say "
                "holes: true"
            )
        told.append(one)
        blocks.append(_blocks(where, row, one[1]))
    if not told:
        raise FileError(f"{path}: no request in it: give a trace with some")
    found, prompts, outputs = zip(*told, strict=True)
    prefixes = None
    if any(blocks):
        begins = np.concatenate([[0], np.cumsum([len(one) for one in blocks])])
        flat = np.array([block for one in blocks for block in one], dtype=np.int64)
        prefixes = Prefixes(BLOCK_TOKENS, np.unique(flat, return_inverse=True)[1], begins)
    return Arrivals(np.array(found) - found[0], np.array(prompts), np.array(outputs), prefixes)


def _blocks(where: str, row: Mapping[str, Any], prompt: int) -> Sequence[int]:
    """The full ones of a prompt: of the last, only a part may be its."""
    found = row.get(BLOCKS, [])
    if not isinstance(found, list) or not all(map(_is_id, found)):
        raise FileError(f"{where}: {BLOCKS} are no list of numbers: mend or remove the line")
    return found[: prompt // BLOCK_TOKENS]


def _rows(path: Path) -> tuple[_Form, Iterator[tuple[int, Mapping[str, Any]]]]:
    """Numbered lines. Raises FileError if the first is of no form."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read: give a trace of requests") from error
    first = text.split("\n", 1)[0]
    if first.lstrip().startswith("{"):
        keys = set(_json(path, 1, first))
        lines = (
            (number, _json(path, number, line))
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip()
        )
        return _form(path, keys), lines
    columns = next(csv.reader([first]), [])
    table = enumerate(csv.DictReader(text.splitlines()), 2)
    return _form(path, set(columns)), table


def _form(path: Path, there: set[str]) -> _Form:
    for form in FORMS:
        if {form.at, form.prompt, form.output} <= there:
            return form
    known = "; ".join(f"{one.name}: {one.at}, {one.prompt}, {one.output}" for one in FORMS)
    raise FileError(f"{path}: its first line names no trace of requests that is known ({known})")


def _json(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise FileError(f"{path}, line {number}: no JSON: mend or remove the line") from error
    if not isinstance(found, dict):
        raise FileError(f"{path}, line {number}: no object: mend or remove the line")
    return found


def _is_id(one: object) -> bool:
    return isinstance(one, int) and 0 <= one < 2**63
