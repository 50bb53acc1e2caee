"""trtllm: the YAML file of TensorRT-LLM's ``moe_config.load_balancer``.

``num_slots``, ``initial_global_assignments`` (layer of the model -> expert of each slot, ranks end
to end) and ``layer_updates_per_iter``: 0 keeps the placement as it is, as written here. The file
does not say how many ranks there are. As in the engine, layers may be numbers or such text, and all
of it may stand inside the file of its other options.
"""

from typing import Any

import yaml

from placer.bounds import MOST_LAYERS
from placer.errors import FileError
from placer.files.documents import of_yaml
from placer.formats.parsing import Map, other_layers, rows_of
from placer.model import ModelShape
from placer.placement import Placement

KEY = "initial_global_assignments"


def dump(placement: Placement, model: ModelShape | None) -> str:
    numbers = range(placement.layers) if model is None else model.moe_layers
    rows = placement.physical_to_logical.tolist()
    config = {
        KEY: dict(zip(numbers, rows, strict=True)),
        "num_slots": placement.slots,
        "layer_updates_per_iter": 0,
    }
    return yaml.safe_dump(config, default_flow_style=None, width=2**20, sort_keys=False)


def parse(text: str, model: ModelShape | None) -> Map:
    data = _balancer(of_yaml(text, "the file"))
    layers = data.get(KEY)
    if layers is None and "num_slots" in data:
        raise FileError(
            f"no placement in it ({data['num_slots']!r:.20} num_slots, no {KEY}): TensorRT-LLM"
            " starts from its own; plan without --current"
        )
    if not isinstance(layers, dict) or not layers or not all(map(_is_layer, layers)):
        raise FileError(f"no {KEY} by layer number in the file: is it the right --format?")
    of_layer = {int(name): row for name, row in layers.items()}
    if len(of_layer) < len(layers):
        raise FileError(f"{KEY} has a layer twice: which one counts?")
    numbers = sorted(of_layer)
    if model is not None and tuple(numbers) != model.moe_layers:
        raise other_layers(numbers, model)
    rows = rows_of([of_layer[number] for number in numbers], KEY)
    if any(len(row) != data.get("num_slots", len(row)) for row in rows):
        raise FileError(f"num_slots is {data['num_slots']} but a layer has another number of slots")
    return Map(rows)


def _balancer(data: Any) -> dict[Any, Any]:
    """The balancer's own settings, wherever they stand in the file."""
    for part in ("moe_config", "load_balancer"):
        if isinstance(data, dict) and part in data:
            data = data[part]
    return data if isinstance(data, dict) else {}


def _is_layer(name: Any) -> bool:
    return (type(name) is int and 0 <= name < MOST_LAYERS) or (
        isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 5
    )
