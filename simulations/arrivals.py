"""Requests that come: from the Azure traces, or drawn."""

import csv
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.errors import FileError

COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """In the order in which they come.

    at_s:   [requests] seconds since the beginning
    prompt, output: [requests] tokens, 1 or more
    """

    at_s: FloatArray
    prompt: IntArray
    output: IntArray

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def seconds(self) -> float:
        return float(self.at_s[-1]) if len(self) else 0.0

    def between(self, begin_s: float, end_s: float) -> Self:
        """Those of [begin_s, end_s), seconds from its beginning."""
        first, last = np.searchsorted(self.at_s, [begin_s, end_s])
        part = slice(int(first), int(last))
        return type(self)(self.at_s[part] - begin_s, self.prompt[part], self.output[part])

    def times(self, factor: int) -> Self:
        """Each request so many times at its moment: bursts stay bursts, and grow."""
        again = np.repeat(np.arange(len(self)), factor)
        return type(self)(self.at_s[again], self.prompt[again], self.output[again])


def read_azure(path: Path) -> Arrivals:
    """An AzureLLMInferenceTrace csv file. Raises FileError for what is none."""
    with path.open(newline="") as file:
        rows = csv.reader(file)
        if next(rows, None) != COLUMNS:
            raise FileError(
                f"{path}: its columns are not {', '.join(COLUMNS)}: give an Azure trace"
            )
        told = [(_instant(stamp), int(prompt), int(output)) for stamp, prompt, output in rows]
    told.sort()
    at_s, prompt, output = zip(*told, strict=True)
    return Arrivals(np.array(at_s) - at_s[0], np.array(prompt), np.array(output))


def _instant(stamp: str) -> float:
    """Their stamps have seven digits of a second, of which Python reads six."""
    return datetime.fromisoformat(stamp[:26]).timestamp()


def poisson(per_s: float, seconds: float, prompt: int, output: int, seed: int) -> Arrivals:
    """Requests of one size that come independently of each other."""
    rng = np.random.default_rng(seed)
    at_s = np.sort(rng.random(rng.poisson(per_s * seconds)) * seconds)
    sizes = np.full(len(at_s), prompt), np.full(len(at_s), output)
    return Arrivals(at_s, *sizes)
