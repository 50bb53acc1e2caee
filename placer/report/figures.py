"""Scores as rows of a table and as fields of --json."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from placer.cost import Score
from placer.plan import Comparison, Plan

Figures = dict[str, Any]

NO_FIGURES: Figures = dict.fromkeys(
    (
        "balancedness",
        "balancedness_min",
        "balancedness_aggregate",
        "balancedness_served",
        "fanout_gpus",
        "fanout_nodes",
        "hops",
        "step_ms_before",
        "step_ms_after",
    )
)

NO_ANSWER: Figures = {
    "status": None,
    "reason": None,
    "optimizer": None,
    **NO_FIGURES,
    "moved": None,
    "moved_share": None,
    "moved_bytes": None,
    "solve_ms": None,
    "bound": None,
    "gap": None,
    "digest": None,
    "holdout": None,
    "guarded": None,
    "frontier": None,
    "notes": [],
}


def measured(scores: Comparison, sized: bool) -> Figures:
    """The fields that depend on traffic; times only for a model whose sizes are known."""
    names = [name for name in NO_FIGURES if not name.startswith("step_ms")]
    return {
        **{name: getattr(scores.after, name) for name in names},
        "step_ms_before": scores.before.step_s * 1e3 if sized else None,
        "step_ms_after": scores.after.step_s * 1e3 if sized else None,
    }


def frontier_table(plan: Plan) -> Table:
    """What the first of a plan's moves win."""
    result = Table(title="what the first moves win", title_justify="left")
    for name in ("slots moved, at most", "moved", "balancedness", "step, ms"):
        result.add_column(name, justify="right")
    for one in plan.frontier:
        step = f"{one.step_s * 1e3:.3f}" if plan.model and plan.model.sized else "-"
        result.add_row(f"{one.share:.0%}", f"{one.moved:,}", f"{one.balancedness:.4f}", step)
    return result


def frontier_json(plan: Plan) -> list[Figures] | None:
    """The same for scripts; step times only for a model whose sizes are known."""
    sized = plan.model is not None and plan.model.sized
    return [
        {
            "share": one.share,
            "moved": one.moved,
            "balancedness": one.balancedness,
            "step_ms": one.step_s * 1e3 if sized else None,
        }
        for one in plan.frontier
    ] or None


def frontier_curve(plan: Plan) -> Figures | None:
    """Balancedness and step time over the current plan's, by percent of the slots moved."""
    if not plan.frontier or plan.fit is None or plan.move_cost is None:
        return None
    slots, before, after = plan.placement.physical_to_logical.size, plan.fit.before, plan.fit.after
    points = {(one.moved, one.balancedness, one.step_s) for one in plan.frontier}
    points |= {(0, before.balancedness, before.step_s)}
    points |= {(plan.move_cost.moved, after.balancedness, after.step_s)}
    moved, balancedness, step_s = zip(*sorted(points), strict=True)
    return {
        "moved": [100 * one / slots for one in moved],
        "balancedness": list(balancedness),
        "step": [one / before.step_s for one in step_s],
    }


def table(title: str, columns: Mapping[str, Score], sized: bool) -> Table:
    """One column a score."""
    result = Table(title=title, title_justify="left")
    result.add_column("", no_wrap=True)
    for name in columns:
        result.add_column(name, justify="right")
    for label, cells in rows(list(columns.values()), sized):
        result.add_row(label, *cells)
    return result


def rows(scores: Sequence[Score], sized: bool) -> list[tuple[str, list[str]]]:
    """(label, a cell a score); figures that no score knows are left out."""
    lines: list[tuple[str, str, float, str]] = [
        ("balancedness, mean", "balancedness", 1, ".4f"),
        ("balancedness, worst layer", "balancedness_min", 1, ".4f"),
        ("balancedness, aggregate", "balancedness_aggregate", 1, ".4f"),
        ("balancedness, as served", "balancedness_served", 1, ".4f"),
        ("GPUs a token (fan-out)", "fanout_gpus", 1, ".3f"),
        ("nodes a token (fan-out)", "fanout_nodes", 1, ".3f"),
        ("hops a token", "hops", 1, ".2f"),
    ]
    if sized:
        lines += [
            ("step, ms", "step_s", 1e3, ".3f"),
            ("of which dispatch, ms", "dispatch_s", 1e3, ".3f"),
            ("of which experts, ms", "experts_s", 1e3, ".3f"),
            ("of which combine, ms", "combine_s", 1e3, ".3f"),
        ]
    result = []
    for label, name, unit, form in lines:
        values = [getattr(score, name) for score in scores]
        if any(value is not None for value in values):
            result.append((label, ["-" if v is None else format(v * unit, form) for v in values]))
    return result
