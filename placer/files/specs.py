"""Models and topologies as users write them: a preset's name, YAML, or a HF config.json."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from placer import model, topology
from placer.bounds import MOST_LAYERS
from placer.errors import FileError, ModelError
from placer.files.atomic import read_text
from placer.files.configs import Reading, read_config
from placer.files.documents import of_json, of_yaml
from placer.files.faults import first_fault
from placer.model import ModelShape
from placer.topology import GB, Gpu, Link, Topology

LIMIT = 2**20
MOST = 1e18  # so that no unit takes it beyond all numbers; Gpu and Link know what is possible


def _no_truth(value: Any) -> Any:
    """pydantic would take ``true`` for 1."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    _numbers = field_validator("*", mode="before")(_no_truth)


class LinkSpec(_Strict):
    gigabytes_per_s: float | None = Field(default=None, gt=0, le=MOST)
    latency_us: float | None = Field(default=None, ge=0, le=MOST)

    def on(self, link: Link) -> Link:
        rate, latency = self.gigabytes_per_s, self.latency_us
        return Link(
            link.bytes_per_s if rate is None else rate * GB,
            link.latency_s if latency is None else latency * 1e-6,
        )


class GpuSpec(_Strict):
    tflops_16bit: float | None = Field(default=None, gt=0, le=MOST)
    tflops_8bit: float | None = Field(default=None, gt=0, le=MOST)
    memory_gb: float | None = Field(default=None, gt=0, le=MOST)
    memory_gb_per_s: float | None = Field(default=None, gt=0, le=MOST)

    def on(self, gpu: Gpu) -> Gpu:
        given = {
            "flops_16bit": (self.tflops_16bit, 1e12),
            "flops_8bit": (self.tflops_8bit, 1e12),
            "hbm_bytes": (self.memory_gb, GB),
            "hbm_bytes_per_s": (self.memory_gb_per_s, GB),
        }
        changes = {n: type(getattr(gpu, n))(v * unit) for n, (v, unit) in given.items() if v}
        return replace(gpu, **changes)


class TopologySpec(_Strict):
    """A preset's node, with what differs."""

    name: str | None = None
    preset: str
    gpus: int = Field(ge=1)
    nodes: int | None = Field(default=None, ge=1)
    gpu: GpuSpec = GpuSpec()
    local: LinkSpec = LinkSpec()
    network: LinkSpec = LinkSpec()

    def topology(self, path: Path) -> Topology:
        base = topology.preset(self.preset).resized(self.gpus, self.nodes)
        return replace(
            base,
            name=self.name or path.stem,
            gpu=self.gpu.on(base.gpu),
            local=self.local.on(base.local),
            network=self.network.on(base.network),
        )


_SHAPE = TypeAdapter(ModelShape)
_EARLIER = {"activation_bits", "first_moe_layer"}  # keys of earlier versions' files
# A config.json has one of these, a YAML model file none.
_HUGGING_FACE = {"model_type", "architectures"}
# Where NVIDIA's older checkpoints say how they are quantized.
_BESIDE = "hf_quant_config.json"


def read_model(name: str) -> ModelShape:
    """A preset, or the model that a YAML file or a config.json describes."""
    return understand(name).shape


def understand(name: str) -> Reading:
    """The model of a preset's name, a YAML file, a config.json, or the folder that it is in."""
    path = Path(name)
    if os.path.isdir(name):
        path /= "config.json"
    elif not _is_file(name):
        return Reading(model.preset(name), "as published")
    data = _mapping(path)
    try:
        if _HUGGING_FACE & data.keys():
            return read_config(_quantized(data, path), _title(path))
        return Reading(shape_of({"name": path.stem, **data}), "as the file says")
    except ValidationError as error:
        raise ModelError(f"{path}: {first_fault(error)}: see docs/files.md") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def is_model(name: str) -> bool:
    """Whether ``name`` is a model's rather than a recording's or a plan's."""
    path = Path(name)
    if os.path.isdir(name) or not (_is_file(name) or path.suffix == ".npz"):
        return True
    if path.suffix != ".json" or not path.is_file() or path.stat().st_size > LIMIT:
        return path.suffix in {".yaml", ".yml"}
    data = of_json(read_text(path, LIMIT), name, finite=False)
    return isinstance(data, dict) and bool((_HUGGING_FACE | {"experts"}) & data.keys())


def _title(path: Path) -> str:
    """What a checkpoint is called: its folder, unless the file is not called as they all are."""
    return path.resolve().parent.name if path.name == "config.json" else path.stem


def _quantized(data: dict[str, Any], path: Path) -> dict[str, Any]:
    beside = path.with_name(_BESIDE)
    if path.name != "config.json" or data.get("quantization_config") or not beside.is_file():
        return data
    return data | {"quantization_config": {"quant_method": "modelopt", **_mapping(beside)}}


def shape_of(data: Any) -> ModelShape:
    """The shape in a file's own words, or earlier ones. Raises pydantic's ValidationError."""
    if isinstance(data, dict):
        data = _with_layers(_from_earlier(data))
        if unknown := set(data) - set(ModelShape.__slots__):
            raise ModelError(
                f"unknown model key {min(unknown)!r:.60}: use {', '.join(ModelShape.__slots__)}"
            )
        for key, value in data.items():
            if isinstance(value, bool) and key != "sized":
                raise ModelError(f"{key} is {value}: it must be a number")
    return _SHAPE.validate_python(data)


def _from_earlier(data: dict[str, Any]) -> dict[str, Any]:
    """What earlier versions said in one number: of both ways, and of layers one after another."""
    new = {key: value for key, value in data.items() if key not in _EARLIER}
    if (bits := data.get("activation_bits")) is not None:
        new |= {"dispatch_bits": bits, "combine_bits": bits}
    if (first := data.get("first_moe_layer")) is not None:
        new["moe_layers"] = {"first": first, "step": 1}
    return new


def _with_layers(data: dict[str, Any]) -> dict[str, Any]:
    """``moe_layers: {first: 1, step: 2}`` as the list that it stands for."""
    said = data.get("moe_layers")
    if not isinstance(said, dict) or "layers" not in data:
        return data
    numbers = (data["layers"], said.get("first", 0), said.get("step", 1))
    if said.keys() - {"first", "step"} or any(type(number) is not int for number in numbers):
        raise ModelError(
            f"moe_layers is {said!r:.60}: give a list, or whole numbers first and step"
        )
    layers, first, step = numbers
    if not (0 < layers <= MOST_LAYERS and step > 0):
        raise ModelError(f"moe_layers is {said!r:.60} for {layers} layers: step is 1 or more")
    return data | {"moe_layers": list(range(first, first + layers * step, step))}


def read_topology(name: str) -> Topology:
    """One node of a preset, or the topology that a YAML file describes."""
    path = Path(name)
    if not _is_file(name):
        return topology.preset(name)
    try:
        return TopologySpec.model_validate(_mapping(path)).topology(path)
    except ValidationError as error:
        raise FileError(f"{path}: {first_fault(error, TopologySpec)}: see docs/files.md") from error


def _is_file(name: str) -> bool:
    """Whether the user meant a file: it has a suffix or a folder, or it is there."""
    path = Path(name)
    return path.suffix in {".yaml", ".yml", ".json"} or len(path.parts) > 1 or os.path.isfile(name)


def _mapping(path: Path) -> dict[str, Any]:
    text = read_text(path, LIMIT)
    is_json = path.suffix == ".json"  # where Mamba's configs hold Infinity
    data = of_json(text, str(path), finite=False) if is_json else of_yaml(text, str(path))
    if not isinstance(data, dict):
        raise FileError(f"{path} holds a {type(data).__name__}: it must hold keys and values")
    return {str(key): value for key, value in data.items()}
