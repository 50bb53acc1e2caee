"""A plan as one HTML file that needs nothing else: no network, no fonts, no other file."""

import base64
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from rich.filesize import decimal

from placer.arrays import FloatArray
from placer.cost.balance import rank_load
from placer.cost.traffic import expected
from placer.placement import Placement
from placer.plan import Plan
from placer.profile import Profile
from placer.report.figures import rows

MOVES_SHOWN = 200


def report(plan: Plan, profile: Profile, before: Placement) -> str:
    """The page. ``profile`` is the traffic that the plan was made from, ``before`` what it
    replaces."""
    assert plan.fit and plan.model and plan.topology and plan.provenance and plan.move_cost
    scores = [plan.fit.before, plan.fit.after]
    if plan.holdout:
        scores += [plan.holdout.before, plan.holdout.after]
    return _template().render(
        plan=plan,
        rows=rows(scores, plan.model.sized),
        moves=plan.moves[:MOVES_SHOWN],
        moved_size=decimal(plan.move_cost.moved_bytes),
        data=_data(plan, profile, before),
        plotly=_plotly(),
    )


def _data(plan: Plan, profile: Profile, before: Placement) -> dict[str, Any]:
    """What the page draws; arrays as Plotly reads them."""
    after = plan.placement
    dispatch = plan.objective.dispatch
    load = profile.load / np.maximum(profile.load.mean(axis=1, keepdims=True), 1e-300)
    pages: dict[str, Any] = {}
    for name, placement in (("before", before), ("after", after)):
        weight = rank_load(profile.load, placement)
        relative = weight / np.maximum(weight.mean(axis=1, keepdims=True), 1e-300)
        fanout = expected(profile, placement, dispatch).fanout_gpus
        pages[name] = {
            "ranks": _array(relative.astype(np.float32)),
            "total": (weight.sum(axis=0) / weight.sum(axis=0).mean()).tolist(),
            "fanout": None if fanout is None else fanout.tolist(),
            # Experts of each layer in the order of the GPUs that hold them first.
            "order": _array(placement.copies.argmax(axis=2).argsort(axis=1, kind="stable")),
            "home": _array(placement.copies.argmax(axis=2)),
        }
    return {
        **pages,
        "experts": _array(load.astype(np.float32)),
        "affinity": None if profile.transitions is None else _affinity(profile.transitions),
        "layers": profile.layers,
        "gpus": after.gpus,
    }


def _affinity(transitions: FloatArray) -> dict[str, Any]:
    """Percent of all tokens that go from i to j, in 255ths of each layer's ``peak``."""
    percent = 100 * transitions / max(float(transitions[0].sum()), 1)
    peak = np.maximum(percent.max(axis=(1, 2)), 1e-9)
    steps = np.rint(255 * percent / peak[:, None, None]).astype(np.uint8)
    return {"steps": _array(steps), "peak": peak.tolist()}


def _array(array: npt.NDArray[Any]) -> dict[str, str]:
    """Plotly's typed-array form."""
    if array.dtype.kind == "i":
        array = array.astype(np.int16)
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {
        "dtype": f"{array.dtype.kind}{array.dtype.itemsize}",
        "shape": ", ".join(map(str, array.shape)),
        "bdata": base64.b64encode(little.tobytes()).decode(),
    }


@cache
def _template() -> jinja2.Template:
    text = files("placer.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)


def _plotly() -> str:
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
