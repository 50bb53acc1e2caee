"""A plan or a sweep as one HTML file that needs nothing else: no network, no other file."""

import base64
import json
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from rich.filesize import decimal

from placer.cost.balance import rank_load
from placer.cost.traffic import expected
from placer.placement import Placement
from placer.plan import Plan
from placer.profile import Profile
from placer.report.figures import frontier_curve, rows
from placer.report.page import Page, page_json
from placer.report.plain import shown
from placer.report.sweep import names, resize_names, resize_rows, sweep_rows
from placer.trace import told
from placer.trials import Study
from placer.whatif import Advice

MOVES_SHOWN = 200


def plan_report(plan: Plan, profile: Profile, before: Placement) -> str:
    """The page of a plan that was made from ``profile`` and replaces ``before``."""
    assert plan.fit and plan.model and plan.topology and plan.provenance and plan.move_cost
    scores = [plan.fit.before, plan.fit.after]
    for other in (plan.holdout, plan.guarded):
        if other:
            scores += [other.before, other.after]
    return _template("plan.html.j2").render(
        plan=plan,
        rows=rows(scores, plan.model.sized),
        moves=plan.moves[:MOVES_SHOWN],
        moved_size=decimal(plan.move_cost.moved_bytes),
        data=_data(plan, profile, before),
        plotly=_plotly(),
    )


def sweep_report(study: Study, advice: Advice) -> str:
    """The page of a sweep."""
    curves = []
    for knee in advice.knees:
        case = knee.case
        mine = [
            o
            for o in advice.outcomes
            if o.after and (o.case.topology, o.case.dispatch) == (case.topology, case.dispatch)
        ]
        curves.append(
            {
                "name": f"{case.topology.title}, {case.dispatch}",
                "redundant": [o.case.redundant for o in mine],
                "step_ms": [o.step_s * 1e3 for o in mine],
                "kv_gb": [o.kv_bytes / 1e9 for o in mine],
                "knee": case.redundant,
                "rate": knee.tokens_per_s,
            }
        )
    return _template("sweep.html.j2").render(
        study=study,
        advice=advice,
        notes=told(study.profile.notes),
        names=names(study.model.sized),
        rows=sweep_rows(advice, study.model.sized),
        resize_names=resize_names(study.model.sized),
        resizes=resize_rows(advice, study.model.sized),
        data={"curves": curves},
        plotly=_plotly(),
    )


def page_report(page: Page | None) -> str:
    """The page of a control loop. None: one that asks the controller which served it."""
    return _template("fleet.html.j2").render(
        data=None if page is None else json.loads(page_json(page)),
        title="control loop" if page is None else page.title,
        script="".join(
            files("placer.report").joinpath(name).read_text(encoding="utf-8")
            for name in ("charts.js", "fleet.js")
        ),
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
        "frontier": frontier_curve(plan),
        "experts": _array(load.astype(np.float32)),
        "affinity": _affinity(profile),
        "layers": profile.layers,
        "gpus": after.gpus,
    }


def _affinity(profile: Profile) -> dict[str, Any] | None:
    """Percent of all tokens that go from i to j, in 255ths of each layer's ``peak``."""
    if profile.transitions is None or profile.layers == 1:
        return None
    percent = 100 * profile.transitions / profile.tokens
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
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("placer", "report"),
        autoescape=True,
        finalize=lambda value: shown(value) if type(value) is str else value,  # not Markup
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {}  # in the order that it is given in
    return environment.get_template(name)


def _plotly() -> str:
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
