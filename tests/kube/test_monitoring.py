"""The dashboard and the alerts speak of figures that there are, with labels that these have."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.kube.cluster import ROOT
from tests.kube.conftest import CHART

ALERTS = yaml.safe_load((CHART / "files/alerts.yaml").read_text())
DASHBOARD = json.loads((CHART / "files/dashboard.json").read_text())
OF_TARGETS = {"namespace", "service", "pod", "le"}  # by Prometheus, and of histograms
POOLS = {"pool"}
FAMILIES = ("placer_", "vllm_router_", "http_server_")
DEFINED = re.compile(r'(Counter|Gauge)\(\s*"(placer_operator_\w+)",\s*"[^"]*"(?:,\s*\[([^\]]*)\])?')


def known() -> Iterator[tuple[str, set[str]]]:
    """Names and labels, as the documents have them, and the operator's as it defines them."""
    for document, labels in (("controller", POOLS), ("front", set())):
        text = (ROOT / "docs" / f"{document}.md").read_text()
        rows = re.findall(r"^\| (`(?:placer|vllm_router|http_server)_.*)", text, re.MULTILINE)
        for row in rows:
            words = re.findall(r"`(\w+)`", row)
            names = [
                word for word in words if word.startswith(("placer_", "vllm_", "http_server_"))
            ]
            for name in names:
                yield name, labels | set(words) - set(names)
    for path in (ROOT / "controller" / "kube").rglob("*.py"):
        for kind, name, labels_text in DEFINED.findall(path.read_text()):
            yield (
                name + ("_total" if kind == "Counter" else ""),
                set(re.findall(r"\w+", labels_text)),
            )


KNOWN = dict(known())


def asked() -> Iterator[tuple[str, str]]:
    """Where a question is asked, and which."""
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


@pytest.mark.parametrize(("where", "question"), list(asked()))
def test_every_figure_exists_and_has_the_labels(where: str, question: str) -> None:
    names = re.findall(r"\b((?:placer|vllm_router|http_server)_\w+)", question)
    assert names, where
    selected = set(re.findall(r"[{,]\s*(\w+)\s*(?:=|!=|=~|!~)\"", question))
    grouped = {
        label for text in re.findall(r"by \(([^)]*)\)", question) for label in text.split(", ")
    }
    for name in names:
        bare = re.sub(r"_(bucket|count|sum)$", "", name)
        assert name in KNOWN or bare in KNOWN, f"{where}: {name}"
        labels = KNOWN.get(name, KNOWN.get(bare, set()))
        assert selected | grouped <= labels | OF_TARGETS, f"{where}: {name} has {sorted(labels)}"


def test_every_figure_of_the_controller_is_on_the_dashboard() -> None:
    shown = " ".join(question for _, question in asked())
    text = (ROOT / "docs/controller.md").read_text()
    told = re.findall(r"^\| `(placer_\w+)`", text, re.MULTILINE)
    detail = {"placer_rank_load_tokens"}  # only if it is asked for
    assert {name for name in told if name not in shown} == detail


def test_an_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do() -> None:
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert set(rule["annotations"]) == {"summary", "description"}
            words = " ".join(rule["annotations"].values())
            for label in re.findall(r"\$labels\.(\w+)", words):
                assert label in rule["expr"] or label in POOLS, rule["alert"]


def test_panels_do_not_cover_each_other() -> None:
    cells: set[tuple[int, int]] = set()
    ids: set[int] = set()
    for panel in DASHBOARD["panels"]:
        at: Any = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert max(x for x, _ in mine) < 24
        assert not cells & mine
        assert panel["id"] not in ids
        cells |= mine
        ids.add(panel["id"])


def test_there_is_one_source_of_each() -> None:
    for name in ("alerts.yaml", "dashboard.json"):
        path = ROOT / "deploy" / "monitoring" / name
        assert path.is_symlink()
        assert path.resolve() == CHART / "files" / name
