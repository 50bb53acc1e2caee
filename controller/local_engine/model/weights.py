"""The checkpoint of a Qwen3-MoE, in the layout in which ranks keep it: float32, inputs by outputs.

A page is one expert's weights: gate and up side by side [hidden, 2 x intermediate], then down
[intermediate, hidden].
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placer.errors import FileError, ModelError

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Dense = dict[str, Float32]
ITEM = 4  # bytes of a number
_BYTES = {"BF16": 2, "F32": 4}
ROPE_THETA = 10_000.0  # what Hugging Face takes where config.json says nothing


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the forward pass has to know. ``context``: tokens of a request, prompt included."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    intermediate: int
    vocab: int
    context: int
    normalise_top_k: bool
    epsilon: float
    rope_theta: float

    @property
    def page(self) -> int:
        """Numbers in one expert's weights."""
        return 3 * self.hidden * self.intermediate

    @property
    def dense(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all weights but the experts', by name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = {
            "attention_norm": (self.hidden,),
            "query": (self.hidden, queries),
            "key": (self.hidden, keys),
            "value": (self.hidden, keys),
            "query_norm": (self.head_dim,),
            "key_norm": (self.head_dim,),
            "output": (queries, self.hidden),
            "expert_norm": (self.hidden,),
            "router": (self.hidden, self.experts),
        }
        shapes = {f"{at}.{name}": of for at in range(self.layers) for name, of in layer.items()}
        return shapes | {
            "embedding": (self.vocab, self.hidden),
            "norm": (self.hidden,),
            "head": (self.hidden, self.vocab),
        }


# Our names of a layer's weights, and Hugging Face's.
_OF_LAYER = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "output": "self_attn.o_proj",
    "expert_norm": "post_attention_layernorm",
    "router": "mlp.gate",
}


def read_sizes(folder: Path) -> Sizes:
    """From config.json. Raises ModelError for another kind of model."""
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise FileError(f"cannot read {path}: {error}: give a model's folder") from error
    expected = {
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "hidden_act": "silu",
        "use_sliding_window": False,
    }
    for key, wanted in expected.items():
        if (found := config.get(key, wanted)) != wanted:
            raise ModelError(
                f"{path}: {key} is {found!r}: the local engine serves models with {wanted!r}"
            )
    try:
        return Sizes(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            experts=config.get("num_local_experts") or config["num_experts"],
            top_k=config["num_experts_per_tok"],
            intermediate=config["moe_intermediate_size"],
            vocab=config["vocab_size"],
            context=config["max_position_embeddings"],
            normalise_top_k=config.get("norm_topk_prob", False),
            epsilon=config["rms_norm_eps"],
            rope_theta=_rope_theta(config),
        )
    except KeyError as error:
        raise ModelError(f"{path} has no {error}: is it a Qwen3-MoE's?") from error


def _rope_theta(config: dict[str, Any]) -> float:
    """Where the versions of transformers keep it."""
    nested = config.get("rope_parameters") or {}
    return float(nested.get("rope_theta") or config.get("rope_theta") or ROPE_THETA)


@dataclass(frozen=True)
class Checkpoint:
    """The weights in a model's folder; each tensor is read once, by its offset."""

    folder: Path
    sizes: Sizes

    @property
    def experts(self) -> int:
        return self.sizes.experts

    @property
    def dense_size(self) -> int:
        """Bytes of all but the experts."""
        return ITEM * sum(map(math.prod, self.sizes.dense.values()))

    def read_dense(self, into: Bytes) -> None:
        views = dense_of(into.view(np.float32), self.sizes)
        tensors = self._tensors
        for layer in range(self.sizes.layers):
            for name, theirs in _OF_LAYER.items():
                tensors.read(f"model.layers.{layer}.{theirs}.weight", views[f"{layer}.{name}"])
        tensors.read("model.embed_tokens.weight", views["embedding"], transposed=False)
        tensors.read("model.norm.weight", views["norm"])
        # Tied embeddings are stored once.
        tied = "lm_head.weight" not in tensors
        tensors.read("model.embed_tokens.weight" if tied else "lm_head.weight", views["head"])

    def read_expert(self, layer: int, expert: int, into: Bytes) -> None:
        hidden, half = self.sizes.hidden, self.sizes.intermediate
        page = into.view(np.float32)
        both = page[: 2 * hidden * half].reshape(hidden, 2 * half)
        prefix = f"model.layers.{layer}.mlp.experts.{expert}"
        self._tensors.read(f"{prefix}.gate_proj.weight", both[:, :half])
        self._tensors.read(f"{prefix}.up_proj.weight", both[:, half:])
        self._tensors.read(f"{prefix}.down_proj.weight", page[both.size :].reshape(half, hidden))

    @cached_property
    def _tensors(self) -> "_Tensors":
        return _Tensors(self.folder / "model.safetensors")


def dense_of(numbers: Float32, sizes: Sizes) -> Dense:
    """Views of all weights but the experts, which stand one after the other."""
    found, at = {}, 0
    for name, shape in sizes.dense.items():
        size = math.prod(shape)
        found[name] = numbers[at : at + size].reshape(shape)
        at += size
    return found


class _Tensors:
    """The tensors of one file: a length, that many bytes of JSON, and the numbers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._data = np.memmap(path, np.uint8, mode="r")
            self._begin = 8 + int(self._data[:8].view("<u8")[0])
            self._tensors: dict[str, Any] = json.loads(self._data[8 : self._begin].tobytes())
        except (OSError, ValueError, IndexError) as error:
            raise FileError(f"cannot read {path}: {error}: give a model's folder") from error

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str, into: Float32, transposed: bool = True) -> None:
        """As float32. Hugging Face keeps outputs by inputs; ``transposed`` turns that round."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self.path} has no {name}: is it a Qwen3-MoE's?")
        begin, end = (self._begin + offset for offset in tensor["data_offsets"])
        raw, shape = self._data[begin:end], tuple(tensor["shape"])
        wanted = into.shape[::-1] if transposed else into.shape
        if shape != wanted:
            raise ModelError(
                f"{self.path}: {name} is {list(shape)} but config.json says {list(wanted)}"
                ": take both from one model"
            )
        if tensor["dtype"] not in _BYTES:
            raise ModelError(
                f"{self.path}: {name} is {tensor['dtype']}: the local engine reads BF16 and F32"
            )
        if len(raw) != math.prod(shape) * _BYTES[tensor["dtype"]]:
            raise FileError(f"{self.path}: {name} has {len(raw)} bytes: it must be {list(shape)}")
        target = into.T if transposed else into
        if tensor["dtype"] == "F32":
            target[...] = raw.view("<f4").reshape(shape)
        else:  # the upper half of a float32
            target[...] = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
