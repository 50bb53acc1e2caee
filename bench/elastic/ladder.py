"""The paper's ladder: each rung is without what the ones above have lost, too."""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

from rich.table import Table

from bench.elastic.engines import ROUNDS, Model, an_engine, first_token, resize
from bench.timing import console
from controller.elastic.hmm import Load, Report
from controller.local_engine import loading, resizing

# Seconds from ElasticMoE's ablation, DP 3 -> 4 and 4 -> 3 of DeepSeek V2 Lite.
PAPER = {
    "all of it": (2.43, 1.38),
    "without prefaulted arenas (IPC allocator)": (3.14, 1.36),
    "without p2p": (10.42, 7.74),
    "without standbys": (62.78, 50.21),
    "without zero-copy": (67.40, 64.57),
}


@contextmanager
def _without(rung: int) -> Iterator[dict[str, Any]]:
    options: dict[str, Any] = {}
    patches: list[Any] = []
    if rung >= 1:
        patches.append(patch.object(loading, "Hold", lambda pages: Report()))
    if rung >= 2:
        patches += [
            patch.object(resizing, "sources", _all_from_disk),
            patch.object(resizing.Resizing, "_transfer_dense", _dense_from_disk),
        ]
    if rung >= 3:
        options = {"standbys": 0, "spares": 0}
    for one in patches:
        one.start()
    try:
        yield options
    finally:
        for one in patches:
            one.stop()


def _all_from_disk(now: Any, order: Any, missing: Any) -> Any:
    return {}, missing


def _dense_from_disk(self: Any, came: Any) -> int:
    self._devices.ask_all({device: (Load(True, []), None) for device in came})
    return 0


def ladder(model: Model) -> None:
    table = Table(title="what each part is worth: 3 -> 4 and 4 -> 3 ranks, ms (medians)",
                  title_justify="left")  # fmt: skip
    for name in ("", "up", "down", "ratio up", "paper, s up", "down", "ratio up"):
        table.add_column(name, justify="right" if name else "left")
    first = 0.0
    for rung, (name, (paper_up, paper_down)) in enumerate(PAPER.items()):
        ups, downs = _rung(model, rung)
        up, down = median(ups), median(downs)
        first = first or up
        table.add_row(
            name, f"{up * 1e3:.1f}", f"{down * 1e3:.1f}", f"{up / first:.1f}",
            f"{paper_up}", f"{paper_down}", f"{paper_up / 2.43:.1f}",
        )  # fmt: skip
    console.print(table)


def _rung(model: Model, rung: int) -> tuple[list[float], list[float]]:
    ups, downs = [], []
    with _without(rung) as options:
        for _ in range(ROUNDS if rung < 4 else 0):
            with an_engine(model, 3, **options) as engine:
                ups.append(resize(engine, 4, 1)[0])
            with an_engine(model, 4, most=4, **options) as engine:
                downs.append(resize(engine, 3, 1)[0])
    for _ in range(ROUNDS if rung == 4 else 0):
        for before, after, times in ((3, 4, ups), (4, 3, downs)):
            engine = an_engine(model, before, most=before)
            begun_s = perf_counter()
            engine.close()
            with an_engine(model, after, most=after) as other:
                first_token(other)
                times.append(perf_counter() - begun_s)
    return ups, downs
