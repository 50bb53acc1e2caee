"""trtllm: the YAML file of TensorRT-LLM's ``moe_config.load_balancer``.

``num_slots``, ``initial_global_assignments`` (layer of the model -> expert of each slot, ranks end
to end) and ``layer_updates_per_iter``: 0 keeps the placement as it is, as written here. The file
does not say how many ranks there are.
"""

import yaml

from placer.errors import FileError
from placer.formats.parsing import Map, rows_of
from placer.placement import Placement

KEY = "initial_global_assignments"


def dump(placement: Placement, first_moe_layer: int) -> str:
    rows = placement.physical_to_logical.tolist()
    config = {
        KEY: {first_moe_layer + layer: row for layer, row in enumerate(rows)},
        "num_slots": placement.slots,
        "layer_updates_per_iter": 0,
    }
    return yaml.safe_dump(config, default_flow_style=None, width=2**20, sort_keys=False)


def parse(text: str, first_moe_layer: int) -> Map:
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise FileError(f"not YAML ({str(error).splitlines()[0]})") from error
    layers = data.get(KEY) if isinstance(data, dict) else None
    if layers is None and isinstance(data, dict) and "num_slots" in data:
        raise FileError(
            f"no placement in it ({data['num_slots']!r:.20} num_slots, no {KEY}): TensorRT-LLM"
            " starts from its own; plan without --current"
        )
    if not isinstance(layers, dict) or not layers or not all(type(n) is int for n in layers):
        raise FileError(f"no {KEY} by layer number in the file: is it the right --format?")
    numbers = sorted(layers)
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise FileError(f"{KEY} skips layers between {numbers[0]} and {numbers[-1]}: add them")
    rows = rows_of([layers[number] for number in numbers], KEY)
    if any(len(row) != data.get("num_slots", len(row)) for row in rows):
        raise FileError(f"num_slots is {data['num_slots']} but a layer has another number of slots")
    return Map(rows)
