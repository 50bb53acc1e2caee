"""ElasticMoE (arXiv 2510.02613): another width while requests are served, and four ways to do
without."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from simulations.papers.elasticmoe.serving import Change, throughputs
from simulations.papers.elasticmoe.slo import held, in_time
from simulations.papers.elasticmoe.ways import (
    ALL_OF_IT,
    NARROW,
    RESTART,
    WIDE,
    Way,
    change,
    seconds,
    start_s,
)
from simulations.papers.table import Curves, How, Row, Table

# What each rung leaves, and the paper's seconds up and down. None: no part of the cost model
LADDER: Mapping[str, tuple[Way | None, tuple[float, float]]] = {
    "all of it": (ALL_OF_IT, (2.43, 1.38)),
    "without its IPC allocator": (None, (3.14, 1.36)),
    "and without p2p": (Way(p2p=False), (10.42, 7.74)),
    "and without standbys": (Way(p2p=False, standbys=False), (62.78, 50.21)),
    "and without zero-copy": (RESTART, (67.40, 64.57)),
}
FITTED = ("all of it, up", "and without standbys, up")
FAR = 0.25  # of what is published: further off, a row says why
ABOUT = (
    "DeepSeek-V2-Lite between 3 and 4 Ascend 910B of a node, one data-parallel rank each; seconds "
    "from the command to serving by placer/resize's cost model, with 0.6 GB/s of disk a device. "
    "docs/elastic.md has the same measured on processes that share memory."
)
ABOUT_SERVING = (
    "The same engine with more requests than it can serve, 500 tokens in and 375 out in the mean: "
    "requests a second while the longest change lasts and 5 s around it, and after it, in times of "
    "before."
)
WHY = {
    "without its IPC allocator": "The cost model has no allocator; docs/elastic.md measures it.",
    "and without p2p": "The paper's checkpoint is read faster than at 0.6 GB/s a device.",
    "all of it": "One warm-up for both directions, fitted on the way up.",
    "and without standbys": "One start-up for both directions, fitted on the way up.",
}
WHY_PAUSE = (
    "The paper pauses the intake while it scales; here sequences are handed over with their KV."
)
WHY_WINDOW = (
    "A restart serves nothing until it is ready; how much of it the paper's window shows is "
    "not said."
)
RATES = tuple(range(8, 34, 2))  # requests a second
ABOUT_SLO = (
    "A pool that the paper's rule takes from 4 to 6 ranks, for five minutes at one rate: prompts "
    "of 2,000 tokens, answers of 625, objectives of 1 s and 1 s; a change takes the ladder's "
    "seconds. Ranks are H100s with Qwen3-30B-A3B (simulations/pool.py)."
)
WHY_RATE = "Other accelerators and another model; what counts is the distance to a restart."
WHY_TWO = "The engine model has no two copies that share devices."


def tables(seeds: int, data: Path | None = None) -> Sequence[Table]:
    return [ladder(), baselines(), beside(seeds), slo(seeds)]


def ladder() -> Table:
    rows = []
    for name, (way, published) in LADDER.items():
        for to, (before, after), told in zip(
            ("up", "down"), ((NARROW, WIDE), (WIDE, NARROW)), published, strict=True
        ):
            what = f"{name}, {to}"
            ours = None if way is None else seconds(way, before, after)
            how: How = "calibrated" if what in FITTED else "predicted"
            is_far = ours is None or abs(ours / told - 1) > FAR
            why = WHY.get(name, "") if is_far else ""
            rows.append(Row(what, (told,), ours, how, "{:.2f} s", why))
    return Table("ElasticMoE's ladder", ABOUT, rows)


def baselines() -> Table:
    """Each baseline reads what it serves from disk, and starts its processes."""
    elastic_s, restart_s = (seconds(way, NARROW, WIDE) for way in (ALL_OF_IT, RESTART))
    replica_s = seconds(RESTART, NARROW, NARROW)
    peak, restart, had = (
        int(change(way, NARROW, after).peak_bytes.sum())
        for way, after in ((ALL_OF_IT, WIDE), (RESTART, WIDE), (RESTART, NARROW))
    )
    rows = [
        Row("elastic, to the best baseline", (0.11, 0.19), elastic_s / min(restart_s, replica_s),
            "predicted", "{:.2f}x",
            "The published ratios are of larger models too; this one's own seconds give 0.04."),
        Row("horizontal: a replica of 3", (), replica_s, "predicted", "{:.2f} s"),
        Row("vertical: cold restart, extravagant or colocated", (), restart_s, "predicted",
            "{:.2f} s"),
        Row("peak memory over a cold restart's", (0.02, 0.03), peak / restart - 1, "predicted",
            why="All experts of the narrower width stay until the switch: a third more a device."),
        Row("peak memory under that of two at once", (-0.40, -0.35), peak / (had + restart) - 1,
            "predicted"),
    ]  # fmt: skip
    about = f"{ABOUT} Of the processes' start {start_s():.1f} s are the fourth rung's."
    return Table("ElasticMoE against its baselines, 3 to 4", about, rows)


def beside(seeds: int) -> Table:
    elastic_s, restart_s = (seconds(way, NARROW, WIDE) for way in (ALL_OF_IT, RESTART))
    replica_s = seconds(RESTART, NARROW, NARROW)
    cases = {
        "elastic": (Change(elastic_s), (3.943 / 6.002, 7.818 / 6.002)),
        "cold restart": (Change(restart_s, serves=False), (2.064 / 6.002, 7.818 / 6.002)),
        "extravagant": (Change(restart_s), ()),
        "horizontal": (Change(replica_s, replica=True), ()),
    }
    why = {"elastic, during": WHY_PAUSE, "cold restart, during": WHY_WINDOW}
    rows = []
    for name, (one, published) in cases.items():
        some = [throughputs(one, restart_s, seed) for seed in range(seeds)]
        for at, when in enumerate(("during", "after")):
            ours, what = float(np.mean(some, axis=0)[at]), f"{name}, {when}"
            told = published[at : at + 1]
            rows.append(Row(what, told, ours, "predicted", "{:.2f}x", why.get(what, "")))
    for when, figure in (("during", 0.467 / 1.338), ("after", 2.268 / 1.338)):
        rows.append(Row(f"colocated, {when}", (figure,), None, "predicted", "{:.2f}x", WHY_TWO))
    return Table("ElasticMoE, throughput beside a change", ABOUT_SERVING, rows)


def slo(seeds: int) -> Table:
    delays = {
        "elastic": seconds(ALL_OF_IT, NARROW, WIDE),
        "restart": seconds(RESTART, NARROW, WIDE),
        "no change": math.inf,
    }
    rows, curves = [], {}
    for name, delay_s in delays.items():
        rate = float(np.mean([held(delay_s, seed) for seed in range(seeds)]))
        published, why = ((8.7,), WHY_RATE) if name == "elastic" else ((), "")
        rows.append(Row(f"{name}: nine of ten in time", published, rate, "predicted",
                        "{:.1f} requests/s", why))  # fmt: skip
        shares = [np.mean([in_time(one, delay_s, seed) for seed in range(seeds)]) for one in RATES]
        curves[name] = RATES, [float(share) for share in shares]
    told = Curves("requests a second", "in time", curves)
    return Table("ElasticMoE, load that is kept in time", ABOUT_SLO, rows, told)
