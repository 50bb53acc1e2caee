"""docs/controller.md says everything that an operator can set or measure."""

import re
from dataclasses import fields
from pathlib import Path

from controller.config import Config, PoolPolicy, Traces
from controller.metrics import LoopCollector
from placer.topology import preset
from tests.cli.tiny_controller import a_controller

DOC = (Path(__file__).parents[2] / "docs" / "controller.md").read_text()
ROWS = {
    found[1]: [cell.strip(" `") for cell in found[2].split("|")]
    for found in re.finditer(r"^\| `([a-z_.]+)` \|(.*)\|$", DOC, re.MULTILINE)
}
WORDS = {"nodes": "the topology's", "bytes_per_minute": "none", "hours": "always"}


def test_every_setting_is_in_its_table_with_its_default() -> None:
    default = PoolPolicy(preset("h100"))
    for one in fields(Traces):
        value = getattr(default.traces, one.name)
        told = f"{value:g}" if isinstance(value, float) else str(value).lower()
        assert ROWS[f"traces.{one.name}"][0] == told
    for field in fields(PoolPolicy):
        value = getattr(default, field.name)
        if field.name == "traces":
            continue
        text = value.name if field.name == "topology" else str(value).lower()
        written = ROWS[field.name][0]
        if field.name in WORDS:
            assert (written, bool(value)) == (WORDS[field.name], False)
        elif isinstance(value, float):
            assert float(written) == value, field.name
        else:
            assert written == text, field.name
    for name in ("every_s", "retention_days"):
        assert float(ROWS[name][0]) == getattr(Config(default), name)


def test_every_metric_is_in_its_table() -> None:
    with a_controller() as running:
        families = list(LoopCollector(running.loop, detail=True).collect())
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert names == {name for name in ROWS if name.startswith("placer_")}
