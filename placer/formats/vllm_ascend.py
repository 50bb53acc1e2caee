"""vllm-ascend: the expert map JSON of ``expert_map_path``.

``moe_layer_count`` and a ``layer_list`` of ``layer_id`` (counted among the layers with experts),
``device_count`` and a ``device_list`` of ``device_id`` and ``device_expert``, the logical experts
of that device's slots.
"""

import json

from pydantic import BaseModel, ValidationError

from placer.errors import FileError
from placer.files.documents import of_json
from placer.formats.parsing import Map, rows_of
from placer.model import ModelShape
from placer.placement import Placement


class Device(BaseModel):
    device_id: int
    device_expert: list[int]


class Layer(BaseModel):
    layer_id: int
    device_count: int
    device_list: list[Device]


class ExpertMap(BaseModel):
    moe_layer_count: int
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
        where = ".".join(map(str, fault["loc"]))
        raise FileError(f"{where}: {fault['msg'].lower()}: is it the right --format?") from error
    layers = sorted(file.layer_list, key=lambda layer: layer.layer_id)
    if not _counts_up([layer.layer_id for layer in layers], file.moe_layer_count):
        raise FileError(
            f"moe_layer_count is {file.moe_layer_count} but the layer_ids are not 0 to "
            f"{file.moe_layer_count - 1}: is the file cut short?"
        )
    rows = []
    for layer in layers:
        devices = sorted(layer.device_list, key=lambda device: device.device_id)
        if not _counts_up([device.device_id for device in devices], layer.device_count):
            raise FileError(
                f"layer {layer.layer_id}: device_count is {layer.device_count} but the device_ids"
                f" are not 0 to {layer.device_count - 1}: is the file cut short?"
            )
        if len({len(device.device_expert) for device in devices}) != 1:
            raise FileError(f"layer {layer.layer_id}: the devices have different numbers of slots")
        rows.append([expert for device in devices for expert in device.device_expert])
    if len({layer.device_count for layer in layers}) != 1:
        raise FileError("the layers have different device_counts: is the file mixed up?")
    return Map(rows_of(rows, "layer_list"), gpus=layers[0].device_count)


def _counts_up(numbers: list[int], count: int) -> bool:
    """Whether they are 0 to ``count - 1``, which may be any number of a file's."""
    return len(numbers) == count and numbers == list(range(len(numbers)))
