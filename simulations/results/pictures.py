"""Charts by Plotly, drawn in a Chromium without a window, as SVG."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

Figure = Mapping[str, Any]

COLOURS = ("#8a8f98", "#2a6fdb", "#d98324", "#3a9d6a", "#a65fb8")
WIDTH = 860
PATIENCE_S = 120.0
_PAGE = """<!doctype html><meta charset="utf-8"><script>{plotly}</script><body><script>
const figures = {figures};
Promise.all(figures.map(one => Plotly.toImage(one, {{format: "svg", width: {width},
  height: one.layout.height}}))).then(found => {{
  document.body.textContent = JSON.stringify(found.map(
    one => decodeURIComponent(one.slice(one.indexOf(",") + 1))));
}});
</script></body>"""


def bars(
    title: str, names: Sequence[str], values: Mapping[str, Sequence[float]], form: str
) -> Figure:
    """Groups of bars. values: by what they are of, as many as names; form: of str.format"""
    data = [
        {
            "type": "bar", "orientation": "h", "name": of, "y": list(names), "x": list(some),
            "marker": {"color": colour}, "text": [form.format(one) for one in some],
        }
        for (of, some), colour in zip(values.items(), COLOURS, strict=False)
    ]  # fmt: skip
    axes = {"yaxis": {"autorange": "reversed", "automargin": True}}
    return {"data": data, "layout": _layout(title, 120 + 44 * len(names), bargap=0.3, **axes)}


def lines(
    title: str,
    plots: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    across: str,
) -> Figure:
    """Plots one below the other. plots: by what they are of, and of whom: both coordinates of each
    point; across: what the first is of"""
    data, axes, count = [], {}, len(plots)
    for at, (what, of_whom) in enumerate(plots.items()):
        axis = "" if at == 0 else str(at + 1)
        top = 1 - at / count
        axes[f"yaxis{axis}"] = {"title": {"text": what}, "domain": [top - 0.84 / count, top]}
        for (name, (x, y)), colour in zip(of_whom.items(), COLOURS, strict=False):
            data.append({
                "type": "scatter", "mode": "lines", "name": name, "legendgroup": name,
                "showlegend": at == 0, "x": list(x), "y": list(y), "yaxis": f"y{axis}",
                "line": {"color": colour, "width": 1.5},
            })  # fmt: skip
    height = 120 + 160 * count
    bottom = {"title": {"text": across}, "anchor": f"y{count if count > 1 else ''}"}
    return {"data": data, "layout": _layout(title, height, xaxis=bottom, **axes)}


def _layout(title: str, height: int, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": title, "font": {"size": 15}}, "height": height,
        "template": {"layout": {"font": {"family": "sans-serif", "size": 12}}},
        "paper_bgcolor": "white", "plot_bgcolor": "white",
        "margin": {"l": 70, "r": 20, "t": 80, "b": 50},
        "legend": {"orientation": "h", "y": 1.0, "yanchor": "bottom", "traceorder": "normal"},
        **more,
    }  # fmt: skip


def drawn(figures: Sequence[Figure]) -> Sequence[str] | None:
    """Each as SVG; None if there is no Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((at for name in names if (at := shutil.which(name))), None)
    if browser is None or not figures:
        return None
    plotly = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    told = json.dumps(figures).replace("</", "<\\/")
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page = Path(folder) / "page.html"
        page.write_text(_PAGE.format(plotly=plotly, figures=told, width=WIDTH), encoding="utf-8")
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={folder}/profile", "--virtual-time-budget=60000", "--dump-dom",
            page.as_uri(),
        ]  # fmt: skip
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
    body = re.search(r"<body[^>]*>(\[.*\])</body>", ran.stdout, re.DOTALL)
    if body is None:
        raise RuntimeError(f"{browser} drew nothing: {ran.stderr.strip()[-300:]}")
    found: list[str] = json.loads(html.unescape(body[1]))
    return found
