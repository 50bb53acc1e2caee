"""Tables and heat maps for the terminal."""

import numpy as np
from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from placer.arrays import FloatArray
from placer.plan import Plan
from placer.profile import Profile

WIDTH = 72  # cells of a heat map: fits an 80-column terminal with its labels
HEIGHT = 32
# Dark blue over teal to yellow, the same order of brightness in light and dark terminals.
_STOPS = np.array([[30, 40, 110], [30, 140, 140], [250, 220, 60]], dtype=float)


def heat_map(title: str, values: FloatArray, rows: str, columns: str) -> RenderableType:
    """[rows, columns] as coloured cells, averaged down to fit; the legend gives the range."""
    cells = _fit(values, HEIGHT, WIDTH)
    low, high = float(values.min()), float(values.max())
    scaled = (cells - low) / (high - low) if high > low else np.zeros_like(cells)
    per_row = len(values) / len(cells)
    lines = [Text(title, style="bold")]
    for index, row in enumerate(scaled):
        line = Text(f"{int(index * per_row):5d} ", style="dim")
        for value in row:
            line.append(_shade(float(value)), Style(color=_colour(float(value))))
        lines.append(line)
    legend = Text(f"      {rows} down, {columns} across; ", style="dim")
    legend.append(_shade(0.0), Style(color=_colour(0.0)))
    legend.append(f" {low:.2f} to ", style="dim")
    legend.append(_shade(1.0), Style(color=_colour(1.0)))
    legend.append(f" {high:.2f}", style="dim")
    return Group(*lines, legend)


def of_profile(profile: Profile) -> RenderableType:
    """How uneven the experts' loads are, layer by layer."""
    relative = profile.load / np.maximum(profile.load.mean(axis=1, keepdims=True), 1e-300)
    hottest = relative.max(axis=1)
    table = Table()
    names = (
        "layers",
        "experts",
        "top-k",
        "tokens",
        "sequences",
        "variety",
        "phase",
        "hottest expert",
    )
    for name in names:
        table.add_column(name, justify="right")
    layer = int(hottest.argmax())
    table.add_row(
        str(profile.layers),
        str(profile.experts),
        str(profile.top_k),
        f"{profile.tokens:,.0f}",
        f"{profile.sequences:,}" if profile.sequences else "-",
        "-" if profile.variety is None else f"{profile.variety:.2f}",
        profile.phase,
        f"{hottest[layer]:.1f}x the mean: {int(relative[layer].argmax())} of layer {layer}",
    )
    known = {"transitions": profile.transitions, "co-activation": profile.coactivation}
    absent = [name for name, array in known.items() if array is None]
    lines: list[RenderableType] = [table]
    if absent:
        lines.append(Text(f"not recorded: {', '.join(absent)}"))
    lines.append(
        heat_map("Load of each expert over its layer's mean", relative, "layers", "experts")
    )
    return Group(*lines)


def of_plan(plan: Plan) -> RenderableType:
    """Where replicas went, and what moves."""
    placement = plan.placement
    replicas = placement.replicas
    table = Table()
    names = ("GPUs", "nodes", "layers", "experts", "slots", "most replicas", "empty", "moved")
    for name in names:
        table.add_column(name, justify="right")
    cells = (
        placement.gpus,
        placement.nodes,
        placement.layers,
        placement.experts,
        placement.slots,
        replicas.max(),
        placement.empty,
        plan.move_cost.moved if plan.move_cost else "-",
    )
    table.add_row(*map(str, cells))
    lines: list[RenderableType] = [table]
    if replicas.max() > 1:
        lines.append(
            heat_map("Replicas of each expert", replicas.astype(float), "layers", "experts")
        )
    return Group(*lines)


def _fit(values: FloatArray, height: int, width: int) -> FloatArray:
    """Means over blocks, so that no side is longer than asked."""
    for axis, most in ((0, height), (1, width)):
        size = values.shape[axis]
        if size > most:
            starts = np.arange(most) * size // most
            count = np.diff(np.append(starts, size))
            shape = (-1, 1) if axis == 0 else (1, -1)
            values = np.add.reduceat(values, starts, axis=axis) / count.reshape(shape)
    return values


def _shade(value: float) -> str:
    """Tells high from low where there is no colour, too."""
    return "·░▒▓█"[min(int(value * 5), 4)]


def _colour(value: float) -> str:
    at = value * (len(_STOPS) - 1)
    index = min(int(at), len(_STOPS) - 2)
    mixed = _STOPS[index] + (at - index) * (_STOPS[index + 1] - _STOPS[index])
    return "#{:02x}{:02x}{:02x}".format(*mixed.astype(int))
