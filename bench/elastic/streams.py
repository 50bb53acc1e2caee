"""Streams that go on while the width changes, on devices that are paced."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from time import perf_counter, sleep
from typing import NamedTuple

import numpy as np
from rich.table import Table

from bench.elastic.engines import MB, ROUNDS, Model, an_engine, resize
from bench.timing import console
from controller.local_engine.requests import Request

WIDTHS = (2, 3, 4, 3, 2)


@dataclass
class Seen:
    """times: when each token of a stream came"""

    request: Request
    times: list[float] = field(default_factory=list)

    def follow(self) -> None:
        for _ in self.request:
            self.times.append(perf_counter())


class Resized(NamedTuple):
    """One change of width beside streams. steps_s: the longest before and meanwhile; rates: tokens
    a second of the smaller width alone, and meanwhile"""

    took_s: float
    copied: int
    steps_s: tuple[float, float]
    rates: tuple[float, float]

    @property
    def step_ratio(self) -> float:
        return self.steps_s[1] / self.steps_s[0]

    @property
    def rate_ratio(self) -> float:
        return self.rates[1] / self.rates[0]


def streams(model: Model) -> None:
    prompts = [bytes([65 + at]) * 16 for at in range(model.streams)]
    with an_engine(model, 2) as alone:
        expected = [alone.submit(prompt, model.tokens) for prompt in prompts]
        for one in expected:
            one.tokens()
    passes, requests = [], []
    for _ in range(ROUNDS):
        resized, seen = _pass(model, prompts)
        passes.append(resized)
        requests.append([one.request for one in seen])
    console.print(_table(model, passes))
    pairs = [pair for them in requests for pair in zip(them, expected, strict=True)]
    same = sum(one.tokens() == want.tokens() for one, want in pairs)
    sums = sum(one.sums == want.sums for one, want in pairs)
    failed = sum(bool(one.error) for one, _ in pairs)
    console.print(
        f"  {len(pairs)} requests: {failed} failed, {same} with the same tokens, {sums} with the "
        "same hidden states at every step, to the last bit"
    )


def _pass(model: Model, prompts: Sequence[bytes]) -> tuple[list[Resized], list[Seen]]:
    """There and back, beside one set of streams."""
    with an_engine(model, 2, pace=model.pace) as engine:
        seen = [Seen(engine.submit(prompt, model.tokens)) for prompt in prompts]
        threads = [threading.Thread(target=one.follow) for one in seen]
        for thread in threads:
            thread.start()
        windows = []
        for epoch, ranks in enumerate(WIDTHS[1:], 1):
            sleep(2.5)
            begun_s = perf_counter()
            windows.append((begun_s, *resize(engine, ranks, epoch)))
        sleep(2.5)
        for thread in threads:
            thread.join()
    found = []
    for (before, ranks), (begun_s, took_s, copied) in zip(pairwise(WIDTHS), windows, strict=True):
        ended_s = begun_s + took_s
        steps_s = _longest(seen, begun_s - 1, begun_s), _longest(seen, begun_s, ended_s + 0.2)
        alone = (begun_s - 1.5, begun_s) if ranks > before else (ended_s + 0.5, ended_s + 2)
        meanwhile = begun_s - 0.25, max(ended_s + 0.25, begun_s + 0.75)
        rates = _rate(seen, *alone), _rate(seen, *meanwhile)
        found.append(Resized(took_s, copied, steps_s, rates))
    return found, seen


def _table(model: Model, passes: list[list[Resized]]) -> Table:
    title = f"{model.streams} streams, paced: {model.pace}; medians of {len(passes)} (worst)"
    table = Table(title=title, title_justify="left")
    for name in ("width", "to serving, ms", "copied", "longest step before", "meanwhile", "ratio",
                 "tokens/s of the smaller width", "meanwhile", "ratio"):  # fmt: skip
        table.add_column(name, justify="right")
    for at, (before, ranks) in enumerate(pairwise(WIDTHS)):
        them = [one[at] for one in passes]
        steps_ms = (median(one.steps_s[when] * 1e3 for one in them) for when in (0, 1))
        rates = (median(one.rates[when] for one in them) for when in (0, 1))
        step, rate = [one.step_ratio for one in them], [one.rate_ratio for one in them]
        table.add_row(
            f"{before} -> {ranks}", f"{median(one.took_s for one in them) * 1e3:.0f}",
            f"{median(one.copied for one in them) / MB:.1f} MB",
            *(f"{one:.0f} ms" for one in steps_ms), f"{median(step):.2f} ({max(step):.2f})",
            *(f"{one:.0f}" for one in rates), f"{median(rate):.2f} ({min(rate):.2f})",
        )  # fmt: skip
    return table


def _longest(seen: list[Seen], begin_s: float, end_s: float) -> float:
    gaps = [b - a for one in seen for a, b in pairwise(one.times) if begin_s < b and a < end_s]
    return max(gaps, default=float("nan"))


def _rate(seen: list[Seen], begin_s: float, end_s: float) -> float:
    """Tokens a second; a part of the time between two counts as that part of a token."""
    total = 0.0
    for one in seen:
        counts = np.arange(len(one.times))
        begin, end = np.interp([begin_s, end_s], one.times, counts)
        total += float(end - begin)
    return total / (end_s - begin_s)
