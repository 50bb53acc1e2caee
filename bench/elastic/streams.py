"""Streams that go on while the width changes, on devices that are paced."""

import threading
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter, sleep

import numpy as np
from rich.table import Table

from bench.elastic.engines import MB, Model, an_engine, resize
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


def streams(model: Model) -> None:
    prompts = [bytes([65 + at]) * 16 for at in range(model.streams)]
    with an_engine(model, 2) as alone:
        expected = [alone.submit(prompt, model.tokens) for prompt in prompts]
        for one in expected:
            one.tokens()
    table = Table(title=f"{model.streams} streams, paced: {model.pace}", title_justify="left")
    for name in ("width", "to serving, ms", "copied", "longest step before", "meanwhile", "ratio",
                 "tokens/s of the smaller width", "meanwhile", "ratio"):  # fmt: skip
        table.add_column(name, justify="right")
    with an_engine(model, 2, pace=model.pace) as engine:
        seen = [Seen(engine.submit(prompt, model.tokens)) for prompt in prompts]
        threads = [threading.Thread(target=one.follow) for one in seen]
        for thread in threads:
            thread.start()
        windows = []
        for epoch, (before, ranks) in enumerate(pairwise(WIDTHS), 1):
            sleep(2.5)
            begun_s = perf_counter()
            took_s, copied = resize(engine, ranks, epoch)
            windows.append((before, ranks, begun_s, took_s, copied))
        sleep(2.5)
        for thread in threads:
            thread.join()
    for before, ranks, begun_s, took_s, copied in windows:
        ended_s = begun_s + took_s
        step_before, step_now = (
            _longest(seen, begun_s - 1, begun_s),
            _longest(seen, begun_s, ended_s + 0.2),
        )
        up = ranks > before
        smaller = (
            _rate(seen, begun_s - 1.5, begun_s) if up else _rate(seen, ended_s + 0.5, ended_s + 2)
        )
        rate = _rate(seen, begun_s - 0.25, max(ended_s + 0.25, begun_s + 0.75))
        table.add_row(
            f"{before} -> {ranks}", f"{took_s * 1e3:.0f}", f"{copied / MB:.1f} MB",
            f"{step_before * 1e3:.0f} ms", f"{step_now * 1e3:.0f} ms",
            f"{step_now / step_before:.2f}",
            f"{smaller:.0f}", f"{rate:.0f}", f"{rate / smaller:.2f}",
        )  # fmt: skip
    console.print(table)
    same = sum(
        one.request.tokens() == want.tokens() for one, want in zip(seen, expected, strict=True)
    )
    sums = sum(one.request.sums == want.sums for one, want in zip(seen, expected, strict=True))
    failed = sum(bool(one.request.error) for one in seen)
    console.print(
        f"  {len(seen)} requests: {failed} failed, {same} with the same tokens, {sums} with the "
        "same hidden states at every step, to the last bit"
    )


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
