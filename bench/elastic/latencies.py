"""From the command to ready, idle, in turns with the baselines."""

from statistics import median
from time import perf_counter

import numpy as np
from rich.table import Table

from bench.elastic.engines import MB, ROUNDS, Model, an_engine, first_token, resize
from bench.timing import console


def latencies(model: Model) -> None:
    """In turns, so that the machine's moods are everybody's."""
    ups, downs, bytes_up = [], [], 0
    boots: dict[int, list[float]] = {3: [], 4: []}
    colds: dict[int, list[float]] = {3: [], 4: []}
    with an_engine(model, 3) as engine:
        for epoch in range(1, 2 * ROUNDS, 2):
            took_s, bytes_up = resize(engine, 4, epoch)
            ups.append(took_s)
            downs.append(resize(engine, 3, epoch + 1)[0])
            for ranks in (3, 4):
                begun_s = perf_counter()
                with an_engine(model, ranks, most=ranks) as other:
                    first_token(other)
                    boots[ranks].append(perf_counter() - begun_s)
    for _ in range(ROUNDS):
        for before, after in ((3, 4), (4, 3)):
            engine = an_engine(model, before, most=before)
            begun_s = perf_counter()
            engine.close()
            with an_engine(model, after, most=after) as other:
                first_token(other)
                colds[after].append(perf_counter() - begun_s)
    up, down = median(ups), median(downs)
    table = Table(title="idle, command to ready, ms (medians)", title_justify="left")
    for name in ("", "3 -> 4", "ours / it", "4 -> 3", "ours / it", "ElasticMoE / it, up"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row("ours", f"{up * 1e3:.1f}", "1", f"{down * 1e3:.1f}", "1", "1")
    paper = "at best 0.11, in its text 0.19"
    rows: dict[str, tuple[float, float | None, str]] = {
        "horizontal: a replica of 3": (median(boots[3]), None, paper),
        "vertical, cold restart": (median(colds[4]), median(colds[3]), ""),
        # Memory of this machine is where all devices are: whose it is makes no difference in time.
        "vertical, extravagant or colocated": (median(boots[4]), median(boots[3]), ""),
    }
    for name, (there, back, told) in rows.items():
        cells = [f"{there * 1e3:.0f}", f"{up / there:.3f}"]
        if back is None:
            cells += [f"{_drain_s(model) * 1e3:.0f} to drain", ""]
        else:
            cells += [f"{back * 1e3:.0f}", f"{down / back:.3f}"]
        table.add_row(name, *cells, told)
    console.print(table)
    rate = copy_rate()
    limit = bytes_up / rate + 0.05
    console.print(
        f"  {bytes_up / MB:.1f} MB copied at {rate / 1e9:.1f} GB/s measured would take "
        f"{bytes_up / rate * 1e3:.1f} ms; with 50 ms {limit * 1e3:.1f} ms, ours / that "
        f"{up / limit:.2f}"
    )


def _drain_s(model: Model) -> float:
    """Until a replica's requests have ended, on paced devices: it may go then."""
    with an_engine(model, 3, most=3, pace=model.pace) as engine:
        requests = [engine.submit(bytes([65 + at]), model.tokens) for at in range(model.streams)]
        first = [next(iter(one)) for one in requests]
        begun_s = perf_counter()
        assert all(one.tokens()[0] == token for one, token in zip(requests, first, strict=True))
        return perf_counter() - begun_s


def copy_rate() -> float:
    """Bytes a second between two arenas that are touched."""
    source, into = np.ones(2**27, np.uint8), np.zeros(2**27, np.uint8)
    times = []
    for _ in range(5):
        begun_s = perf_counter()
        into[:] = source
        times.append(perf_counter() - begun_s)
    return len(source) / median(times)
