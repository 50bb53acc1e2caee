"""From the command to ready, idle, in turns with the baselines."""

from statistics import median
from time import perf_counter

import numpy as np
from rich.table import Table

from bench.elastic.engines import MB, ROUNDS, Model, an_engine, first_token, resize
from bench.timing import console


def latencies(model: Model) -> None:
    """In turns, so that the machine's moods are everybody's."""
    ours_up, ours_down = [], []
    taken: dict[str, list[float]] = {
        name: [] for name in ("replica", "cold", "extravagant", "colocated")
    }
    bytes_up = 0
    with an_engine(model, 3) as engine:
        epoch = 0
        for _ in range(ROUNDS):
            epoch += 2
            took_s, bytes_up = resize(engine, 4, epoch - 1)
            ours_up.append(took_s)
            took_s, _ = resize(engine, 3, epoch)
            ours_down.append(took_s)
            for name, boot in (("replica", 3), ("extravagant", 4), ("colocated", 4)):
                begun_s = perf_counter()
                with an_engine(model, boot, most=boot) as other:
                    first_token(other)
                    taken[name].append(perf_counter() - begun_s)
    for _ in range(ROUNDS):
        with an_engine(model, 3, most=3) as engine:
            begun_s = perf_counter()
            engine.close()
            with an_engine(model, 4, most=4) as other:
                first_token(other)
                taken["cold"].append(perf_counter() - begun_s)
    up, down = median(ours_up), median(ours_down)
    table = Table(title="3 -> 4 ranks, idle, command to ready (medians)", title_justify="left")
    for name in ("", "ms", "ours / it", "ElasticMoE / it"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("ours, up", f"{up * 1e3:.1f}", "1", "1")
    table.add_row("ours, down", f"{down * 1e3:.1f}", "", "")
    names = {"replica": "horizontal replica of 3", "cold": "vertical cold restart",
             "extravagant": "vertical extravagant", "colocated": "vertical colocated"}  # fmt: skip
    paper = {
        "replica": "0.11 at best, 0.19 in its text",
        "cold": "",
        "extravagant": "",
        "colocated": "",
    }
    for name, label in names.items():
        table.add_row(
            label,
            f"{median(taken[name]) * 1e3:.0f}",
            f"{up / median(taken[name]):.3f}",
            paper[name],
        )
    console.print(table)
    rate = _copy_rate()
    console.print(
        f"  {bytes_up / MB:.1f} MB copied at {rate / 1e9:.1f} GB/s measured would take "
        f"{bytes_up / rate * 1e3:.1f} ms; with 50 ms {bytes_up / rate * 1e3 + 50:.1f} ms, "
        f"ours / that {up / (bytes_up / rate + 0.05):.2f}"
    )


def _copy_rate() -> float:
    """Bytes a second between two arenas that are touched."""
    source, into = np.ones(2**27, np.uint8), np.zeros(2**27, np.uint8)
    times = []
    for _ in range(5):
        begun_s = perf_counter()
        into[:] = source
        times.append(perf_counter() - begun_s)
    return len(source) / median(times)
