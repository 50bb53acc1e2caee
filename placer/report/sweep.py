"""A sweep as a table and as fields of --json."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.filesize import decimal
from rich.table import Table

from placer.plan import Infeasible
from placer.resize.price import Price
from placer.trials import Outcome
from placer.whatif import Advice

PRICE = (
    *("problem", "kept", "remapped", "copied", "loaded", "p2p_bytes", "network_bytes"),
    *("disk_bytes", "peak_bytes_per_gpu", "seconds", "step_ms"),
)


def sweep_tables(advice: Advice, sized: bool) -> Iterator[RenderableType]:
    """A table a width, a row a redundancy; * marks the knee, ** the best of the knees."""
    for (title, dispatch), rows in groupby(sweep_rows(advice, sized), lambda row: row[:2]):
        table = Table(title=f"{title}, {dispatch}", title_justify="left", padding=(0, 0))
        for name in names(sized)[2:]:
            table.add_column(name, justify="right", no_wrap=True)
        refused = []
        for row in rows:
            if len(row) == len(names(sized)):
                table.add_row(*row[2:])
            else:
                refused.append(f"  {row[2]}: {row[3]}")
        yield table
        yield from refused
        resizes = [row for row in resize_rows(advice, sized) if row[:2] == [title, dispatch]]
        if resizes:
            yield from _resize_table(resizes, sized)


def _resize_table(rows: list[list[str]], sized: bool) -> Iterator[RenderableType]:
    table = Table(
        title="resized from the current plan",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
    )
    for name in resize_names(sized)[2:]:
        table.add_column(name, justify="right", no_wrap=True)
    priced = [row for row in rows if len(row) == len(resize_names(sized))]
    for row in priced:
        table.add_row(*row[2:])
    if priced:
        yield table
    for row in rows:
        if row not in priced:
            yield f"  {row[2]}: no resize: {row[3]}"


def names(sized: bool) -> list[str]:
    timed = ["step, ms", "tok/s/GPU", "KV, GB"] if sized else []
    figures = ["balance", "GPUs/tok", "gain", "blind", "noise", *timed, "moved"]
    return ["topology", "dispatch", "slots +", *figures]


def sweep_rows(advice: Advice, sized: bool) -> list[list[str]]:
    """A row a case, in the columns ``names``; a case without an answer has its reason instead."""
    return [_row(advice, outcome, sized) for outcome in advice.outcomes]


def _row(advice: Advice, outcome: Outcome, sized: bool) -> list[str]:
    case, after = outcome.case, outcome.after
    mark = " **" if outcome is advice.best else " *" if outcome in advice.knees else ""
    cells = [case.topology.title, case.dispatch, f"{case.redundant}{mark}"]
    if after is None:
        return [*cells, outcome.problem]
    cells += [
        f"{after.balancedness:.4f}",
        "-" if after.fanout_gpus is None else f"{after.fanout_gpus:.3f}",
        f"{outcome.gain:.1%}",
        f"{outcome.blind_gain:.1%}",
        f"{outcome.noise:.1%}",
    ]
    if sized:
        cells += [
            f"{outcome.step_s * 1e3:.2f}",
            f"{outcome.tokens_per_s:,.0f}",
            f"{outcome.kv_bytes / 1e9:.1f}",
        ]
    return [*cells, "-" if outcome.moved is None else f"{outcome.moved:.0%}"]


def resize_names(sized: bool) -> list[str]:
    figures = ["p2p", "disk", "peak/GPU", "seconds", "step, ms"] if sized else []
    return ["topology", "dispatch", "slots +", "keep", "remap", "copy", "load", *figures]


def resize_rows(advice: Advice, sized: bool) -> list[list[str]]:
    """A row a case of another width than the current plan's, in the columns ``resize_names``; where
    there is no way it has its reason instead."""
    return [
        [one.case.topology.title, one.case.dispatch, f"{one.case.redundant}", *_price(price, sized)]
        for one in advice.outcomes
        if (price := one.resize)
    ]


def _price(price: Price | Infeasible, sized: bool) -> list[str]:
    if isinstance(price, Infeasible):
        return [price.reason]
    slots = (price.kept, price.remapped, price.copied, price.loaded)
    cells = [f"{count / sum(slots):.0%}" for count in slots]
    if sized:
        cells += [
            *map(decimal, (price.p2p_bytes, price.disk_bytes, price.peak_bytes)),
            f"{price.seconds.total:.2f}",
            f"{price.step_s * 1e3:.2f}",
        ]
    return cells


def advice_json(advice: Advice, sized: bool) -> dict[str, Any]:
    """The object that --json prints."""
    return {
        "status": advice.verdict,
        "reason": advice.reason,
        "best": None if advice.best is None else outcome_json(advice, advice.best, sized),
        "cases": [outcome_json(advice, outcome, sized) for outcome in advice.outcomes],
    }


def outcome_json(advice: Advice, outcome: Outcome, sized: bool) -> dict[str, Any]:
    case, before, after = outcome.case, outcome.before, outcome.after
    timed = sized and after is not None
    return {
        "topology": case.topology.name,
        "gpus": case.topology.gpus,
        "nodes": case.topology.nodes,
        "dispatch": case.dispatch,
        "redundant": case.redundant,
        "knee": outcome in advice.knees,
        "problem": outcome.problem or None,
        "balancedness": after.balancedness if after else None,
        "fanout_gpus": after.fanout_gpus if after else None,
        "fanout_nodes": after.fanout_nodes if after else None,
        "hops": after.hops if after else None,
        "step_ms_before": before.step_s * 1e3 if before and timed else None,
        "step_ms_after": outcome.step_s * 1e3 if timed else None,
        "gain": outcome.gain if after else None,
        "blind_gain": outcome.blind_gain if after else None,
        "traffic_gain": outcome.traffic_gain if after else None,
        "noise": outcome.noise if after else None,
        "tokens_per_s_per_gpu": outcome.tokens_per_s if timed else None,
        "kv_bytes_per_gpu": outcome.kv_bytes if timed else None,
        "moved_share": outcome.moved,
        "resize": price_json(outcome.resize, sized) if outcome.resize else None,
    }


def price_json(price: Price | Infeasible, sized: bool) -> dict[str, Any]:
    """``problem`` alone says why there is no such change; bytes and times need a model's sizes."""
    if isinstance(price, Infeasible):
        return {**dict.fromkeys(PRICE), "problem": price.reason}
    seconds = {**asdict(price.seconds), "total": price.seconds.total}
    figures = (price.p2p_bytes, price.network_bytes, price.disk_bytes, price.peak_bytes)
    cells = (*figures, seconds, price.step_s * 1e3) if sized else (None,) * 6
    slots = (price.kept, price.remapped, price.copied, price.loaded)
    return dict(zip(PRICE, (None, *slots, *cells), strict=True))
