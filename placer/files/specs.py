"""Models and topologies as users write them: a preset's name, YAML, or a HF config.json."""

import os
import reprlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from placer import model, topology
from placer.errors import FileError, ModelError
from placer.files.atomic import read_text
from placer.files.documents import of_json, of_yaml
from placer.model import ModelShape
from placer.topology import GB, Gpu, Link, Topology

LIMIT = 2**20
MOST = 1e18  # so that no unit takes it beyond all numbers; Gpu and Link know what is possible


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


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


def _either(*names: str, **kwargs: Any) -> Any:
    return Field(validation_alias=AliasChoices(*names), **kwargs)


class HfConfig(BaseModel):
    """The few keys that matter of a Hugging Face config.json, under their various names."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    experts: int = _either("n_routed_experts", "num_experts", "num_local_experts")
    top_k: int = _either("num_experts_per_tok", "experts_per_token")
    moe_intermediate: int = _either("moe_intermediate_size", "intermediate_size")
    n_group: int | None = None
    first_k_dense_replace: int = 0
    decoder_sparse_step: int = 1
    mlp_only_layers: list[int] = []
    quantization_config: dict[str, Any] | None = None

    def shape(self, path: Path) -> ModelShape:
        if self.decoder_sparse_step != 1 or self.mlp_only_layers:
            raise ModelError(
                f"{path}: layers with and without experts alternate"
                ": write the sizes in a YAML file instead (docs/files.md)"
            )
        method = str((self.quantization_config or {}).get("quant_method"))
        return ModelShape(
            name=path.resolve().parent.name,
            layers=self.num_hidden_layers - self.first_k_dense_replace,
            experts=self.experts,
            top_k=self.top_k,
            hidden=self.hidden_size,
            moe_intermediate=self.moe_intermediate,
            groups=self.n_group or 1,
            first_moe_layer=self.first_k_dense_replace,
            weight_bits={"fp8": 8.0, "mxfp4": 4.25}.get(method, 16.0),
        )


_SHAPE = TypeAdapter(ModelShape)
# Keys that plans and recordings of earlier versions have, and what says it now.
_EARLIER = {"activation_bits": "dispatch_bits and combine_bits"}


def read_model(name: str) -> ModelShape:
    """A preset, or the model that a YAML file or a HF config.json describes."""
    path = Path(name)
    if not _is_file(name):
        return model.preset(name)
    data = _mapping(path)
    try:
        if "model_type" in data:
            return HfConfig.model_validate(data).shape(path)
        for key in _EARLIER.keys() & data:
            raise ModelError(f"{path}: {key} is no longer a key: use {_EARLIER[key]}")
        return shape_of({"name": path.stem, **data})
    except ValidationError as error:
        raise ModelError(f"{path}: {first_fault(error)}: see docs/files.md") from error


def shape_of(data: Any) -> ModelShape:
    """The shape in a file's own words, or earlier ones. Raises pydantic's ValidationError."""
    if isinstance(data, dict):
        data = _from_earlier(data)
        if unknown := set(data) - set(ModelShape.__slots__):
            raise ModelError(
                f"unknown model key {min(unknown)!r}: use {', '.join(ModelShape.__slots__)}"
            )
    return _SHAPE.validate_python(data)


def _from_earlier(data: dict[str, Any]) -> dict[str, Any]:
    new = {key: value for key, value in data.items() if key not in _EARLIER}
    if (bits := data.get("activation_bits")) is not None:
        new |= {"dispatch_bits": bits, "combine_bits": bits}
    return new


def read_topology(name: str) -> Topology:
    """One node of a preset, or the topology that a YAML file describes."""
    path = Path(name)
    if not _is_file(name):
        return topology.preset(name)
    try:
        return TopologySpec.model_validate(_mapping(path)).topology(path)
    except ValidationError as error:
        raise FileError(f"{path}: {first_fault(error)}: see docs/files.md") from error


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


def first_fault(error: ValidationError) -> str:
    """The first fault, on one line."""
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"])) or "the file"
    return f"{where}: {fault['msg'].lower()} (it has {reprlib.repr(fault['input'])})"
