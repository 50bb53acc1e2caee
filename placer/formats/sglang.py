"""sglang: the JSON file of ``--init-expert-location``.

``{"physical_to_logical_map": [layers of the model][physical experts]}``. Dense layers have rows
too, which are never looked at: they are written as SGLang's own trivial location, expert
``slot mod experts``. The file does not say how many ranks there are.
"""

import json

from placer.errors import FileError
from placer.formats.parsing import Map, from_json, rows_of
from placer.placement import Placement

KEY = "physical_to_logical_map"


def dump(placement: Placement, first_moe_layer: int) -> str:
    trivial = [slot % placement.experts for slot in range(placement.slots)]
    rows = [trivial] * first_moe_layer + placement.physical_to_logical.tolist()
    return json.dumps({KEY: rows})


def parse(text: str, first_moe_layer: int) -> Map:
    data = from_json(text)
    if isinstance(data, dict) and "logical_count" in data:
        raise FileError(
            "this is a recording of expert loads (logical_count), not a placement"
            f": give placer plan that, and here the file with {KEY}"
        )
    if not isinstance(data, dict) or KEY not in data:
        raise FileError(f"no {KEY} in the file: is it the right --format?")
    rows = rows_of(data[KEY], KEY)
    if len(rows) <= first_moe_layer:
        raise FileError(
            f"{KEY} has {len(rows)} layers and the model's experts begin at layer "
            f"{first_moe_layer}: is it the right --model?"
        )
    return Map(rows[first_moe_layer:])
