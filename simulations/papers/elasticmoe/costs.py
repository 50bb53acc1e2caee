"""ElasticMoE's ladder, and its four baselines: what a change of width takes."""

from collections.abc import Mapping

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
from simulations.papers.table import How, Row, Table

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
WHY = {
    "without its IPC allocator": "The cost model has no allocator; docs/elastic.md measures it.",
    "and without p2p": "The paper's checkpoint is read faster than at 0.6 GB/s a device.",
    "all of it": "One warm-up for both directions, fitted on the way up.",
    "and without standbys": "One start-up for both directions, fitted on the way up.",
}
WHY_RATIO = "The published ratios are of larger models too; this one's own seconds give 0.04."
WHY_PEAK = "Experts of the narrower width stay until the switch, a third more on each device."


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
    elastic, wide, narrow = (
        int(change(way, NARROW, after).peak_bytes.sum())
        for way, after in ((ALL_OF_IT, WIDE), (RESTART, WIDE), (RESTART, NARROW))
    )
    rows = [
        Row("elastic, to the best baseline", (0.11, 0.19), elastic_s / min(restart_s, replica_s),
            "predicted", "{:.2f}x", WHY_RATIO),
        Row("peak memory over a cold restart's", (0.02, 0.03), elastic / wide - 1, "predicted",
            why=WHY_PEAK),
        Row("peak memory under two at once", (-0.40, -0.35), elastic / (narrow + wide) - 1,
            "predicted"),
    ]  # fmt: skip
    for name, took_s, peak in (
        ("elastic", elastic_s, elastic),
        ("horizontal: a replica of 3", replica_s, 2 * narrow),
        ("vertical: cold restart", restart_s, wide),
        ("vertical: extravagant, on other devices", restart_s, narrow + wide),
        ("vertical: colocated, on the same devices", restart_s, narrow + wide),
    ):
        how: How = "calibrated" if name == "elastic" else "predicted"
        rows.append(Row(f"{name}: seconds", (), took_s, how, "{:.2f} s"))
        rows.append(Row(f"{name}: peak", (), peak / 1e9, "predicted", "{:,.0f} GB"))
    about = (
        f"{ABOUT} Processes take {start_s():.1f} s to start, fitted on the ladder's fourth rung; "
        "peaks are of all devices."
    )
    return Table("ElasticMoE against its four baselines, 3 to 4", about, rows)
