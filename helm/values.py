"""python helm/values.py [--check]: what is written of the chart's values, from where it is known.

The settings of the controller and the limits of fronts go into placer/values.schema.json as placer
itself reads them; the table in placer/README.md is made from that schema. With --check nothing is
written, and it ends with 1 if something would be.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from controller.config import _ConfigSpec
from controller.router.shared.settings import Limits

CHART = Path(__file__).parent / "placer"
WIDTH = 260
SCHEMA, README = CHART / "values.schema.json", CHART / "README.md"
HEAD = "|---|---|---|\n"  # README.md is a person's up to here


def bare(schema: Any) -> Any:
    """Without the titles that pydantic makes up, and the defaults, which are the controller's."""
    if isinstance(schema, list):
        return [bare(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: bare(one) for name, one in value.items()}
        if key == "properties"
        else bare(value)
        for key, value in schema.items()
        if key not in ("title", "default", "description")
    }


def text(value: Any, indent: str = "") -> str:
    """As JSON, with what fits a line on one."""
    whole = json.dumps(value)
    if len(indent + whole) <= WIDTH or not isinstance(value, dict | list) or not value:
        return whole
    deeper = indent + "  "
    if isinstance(value, list):
        inside, ends = [text(one, deeper) for one in value], "[]"
    else:
        inside = [f"{json.dumps(key)}: {text(one, deeper)}" for key, one in value.items()]
        ends = "{}"
    return ends[0] + "".join(f"\n{deeper}{one}," for one in inside)[:-1] + f"\n{indent}{ends[1]}"


def with_settings(schema: dict[str, Any]) -> dict[str, Any]:
    """Definitions that nothing refers to any more go."""
    known = dict(schema["$defs"])
    for name, made in (
        ("config", _ConfigSpec.model_json_schema(ref_template="#/$defs/{model}")),
        ("limits", TypeAdapter(Limits).json_schema()),
    ):
        made = bare(made)
        known |= made.pop("$defs", {})
        known[name] = made
    for _ in list(known):
        told = json.dumps([schema["properties"], known])
        known = {name: one for name, one in known.items() if f'"#/$defs/{name}"' in told}
    return schema | {"$defs": known}


def rows(schema: Any, values: Any, defs: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Key, default and description, of all that has no keys of its own."""
    for name, spec in schema.get("properties", {}).items():
        one = defs.get(spec.get("$ref", "").rpartition("/")[2], {})
        whole = one | spec
        whole["properties"] = one.get("properties", {}) | spec.get("properties", {})
        at, value = f"{path}{name}", values.get(name) if isinstance(values, dict) else None
        if "description" in whole and not (whole["properties"] and "$ref" not in spec):
            yield at, value, whole["description"]
        if not whole.get("x-leaf"):
            yield from rows(whole, value, defs, f"{at}.")
            if isinstance(items := spec.get("items"), dict) and "$ref" not in items:
                yield from rows(items, None, defs, f"{at}[].")


def readme(schema: dict[str, Any]) -> str:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    lines = []
    for key, value, told in rows(schema, values, schema["$defs"]):
        shown = "" if value is None or "[]" in key else f"`{json.dumps(value)}`"
        lines.append(f"| `{key}` | {shown} | {told} |\n")
    introduction, head, _ = README.read_text().partition(HEAD)
    return introduction + head + "".join(lines)


def main() -> int:
    schema = with_settings(json.loads(SCHEMA.read_text()))
    made = {SCHEMA: text(schema) + "\n", README: readme(schema)}
    stale = [path for path, new in made.items() if path.read_text() != new]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"{path.relative_to(CHART.parent)} is not current: run python helm/values.py")
        return 1 if stale else 0
    for path in stale:
        path.write_text(made[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
