"""sglang: the JSON file of ``--init-expert-location``.

``{"physical_to_logical_map": [layers of the model][physical experts]}``. Dense layers have rows
too, which are never looked at: they are written as SGLang's own trivial location, expert
``slot mod experts``. The file does not say how many ranks there are.
"""

import json

from placer.errors import FileError
from placer.files.documents import of_json
from placer.formats.parsing import Map, other_layers, rows_of
from placer.model import ModelShape
from placer.placement import Placement

KEY = "physical_to_logical_map"


def dump(placement: Placement, model: ModelShape | None) -> str:
    rows = placement.physical_to_logical.tolist()
    if model is not None:
        trivial = [slot % placement.experts for slot in range(placement.slots)]
        of_layer = dict(zip(model.moe_layers, rows, strict=True))
        rows = [of_layer.get(layer, trivial) for layer in range(model.hidden_layers)]
    return json.dumps({KEY: rows})


def parse(text: str, model: ModelShape | None) -> Map:
    data = of_json(text, "the file")
    if isinstance(data, dict) and "logical_count" in data:
        raise FileError(
            "this is a recording of expert loads (logical_count), not a placement"
            f": give placer plan that, and here the file with {KEY}"
        )
    if not isinstance(data, dict) or KEY not in data:
        raise FileError(f"no {KEY} in the file: is it the right --format?")
    rows = rows_of(data[KEY], KEY)
    if model is None:
        return Map(rows)
    if len(rows) != model.hidden_layers:
        raise other_layers(range(len(rows)), model)
    return Map([rows[layer] for layer in model.moe_layers])
