"""vllm-ascend: the expert map JSON of ``expert_map_path``.

``layer_list`` of ``device_list`` of ``device_expert``, the logical experts of that device's slots.
The engine goes by the order of the lists, layers among those with experts: ``layer_id`` and
``device_id``, ``moe_layer_count`` and ``device_count`` are written, and need not be there.
"""

import json

from pydantic import BaseModel, ValidationError

from placer.errors import FileError
from placer.files.documents import of_json
from placer.formats.parsing import Map, rows_of
from placer.model import ModelShape
from placer.placement import Placement


class Device(BaseModel):
    device_id: int | None = None
    device_expert: list[int]


class Layer(BaseModel):
    layer_id: int | None = None
    device_count: int | None = None
    device_list: list[Device]


class ExpertMap(BaseModel):
    moe_layer_count: int | None = None
    layer_list: list[Layer]


def dump(placement: Placement, model: ModelShape | None) -> str:
    by_gpu = placement.physical_to_logical.reshape(placement.layers, placement.gpus, -1).tolist()
    layers = [
        Layer(
            layer_id=layer,
            device_count=placement.gpus,
            device_list=[Device(device_id=gpu, device_expert=row) for gpu, row in enumerate(rows)],
        )
        for layer, rows in enumerate(by_gpu)
    ]
    return json.dumps(ExpertMap(moe_layer_count=len(layers), layer_list=layers).model_dump())


def parse(text: str, model: ModelShape | None) -> Map:
    try:
        file = ExpertMap.model_validate(of_json(text, "the file"))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the file"
        raise FileError(f"{where}: {fault['msg'].lower()}: is it the right --format?") from error
    layers = file.layer_list
    if file.moe_layer_count not in (None, len(layers)):
        raise FileError(
            f"moe_layer_count is {file.moe_layer_count} but layer_list has {len(layers)}"
            ": is the file cut short?"
        )
    rows = []
    for at, layer in enumerate(layers):
        devices = layer.device_list
        if layer.device_count not in (None, len(devices)):
            raise FileError(
                f"layer {at}: device_count is {layer.device_count} but device_list has "
                f"{len(devices)}: is the file cut short?"
            )
        if len({len(device.device_expert) for device in devices}) > 1:
            raise FileError(f"layer {at}: the devices have different numbers of slots")
        rows.append([expert for device in devices for expert in device.device_expert])
    if len({len(layer.device_list) for layer in layers}) > 1:
        raise FileError("the layers have different numbers of devices: is the file mixed up?")
    return Map(rows_of(rows, "layer_list"), len(layers[0].device_list), notes=_out_of_order(layers))


def _out_of_order(layers: list[Layer]) -> tuple[str, ...]:
    """What a reader of the ids would take otherwise than the engine does."""
    ids = {"layer_id": [layer.layer_id for layer in layers]}
    ids["device_id"] = [device.device_id for layer in layers for device in layer.device_list]
    size = {"layer_id": len(layers), "device_id": len(layers[0].device_list)}
    return tuple(
        f"the {name}s do not count up from 0: taken by their order in the file, as the engine does"
        for name, found in ids.items()
        if any(one not in (None, at % size[name]) for at, one in enumerate(found))
    )
