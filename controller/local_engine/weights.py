"""The checkpoint of a Qwen3-MoE, in the layout in which ranks keep it: float32, inputs by outputs.

A page is one expert's weights: gate and up side by side [hidden, 2 x intermediate], then down
[intermediate, hidden].
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placer.errors import FileError, ModelError

Float32 = npt.NDArray[np.float32]
Dense = dict[str, Float32]
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


def read_weights(folder: Path, sizes: Sizes) -> tuple[Dense, Float32]:
    """All but the experts, and pages [layers, experts, page]."""
    tensors = _Tensors(folder / "model.safetensors")
    dense = {
        f"{layer}.{name}": tensors.get(f"model.layers.{layer}.{theirs}.weight")
        for layer in range(sizes.layers)
        for name, theirs in _OF_LAYER.items()
    }
    dense["embedding"] = embedding = tensors.get("model.embed_tokens.weight", transposed=False)
    dense["norm"] = tensors.get("model.norm.weight")
    # Tied embeddings are stored once.
    tied = "lm_head.weight" not in tensors
    dense["head"] = np.ascontiguousarray(embedding.T) if tied else tensors.get("lm_head.weight")
    for name, shape in sizes.dense.items():
        if dense[name].shape != shape:
            raise ModelError(
                f"{tensors.path}: {name} is {list(dense[name].shape)} but config.json says"
                f" {list(shape)}: take both from one model"
            )
    pages = np.empty((sizes.layers, sizes.experts, sizes.page), dtype=np.float32)
    for layer in range(sizes.layers):
        for expert in range(sizes.experts):
            prefix = f"model.layers.{layer}.mlp.experts.{expert}"
            gate, up, down = (
                tensors.get(f"{prefix}.{name}_proj.weight") for name in ("gate", "up", "down")
            )
            page = np.concatenate([np.hstack([gate, up]).ravel(), down.ravel()])
            if page.size != sizes.page:
                raise ModelError(
                    f"{tensors.path}: {prefix} has {page.size} weights but config.json says"
                    f" {sizes.page}: take both from one model"
                )
            pages[layer, expert] = page
    return dense, pages


class _Tensors:
    """The tensors of one file, as float32."""

    def __init__(self, path: Path) -> None:
        # Ranks import this module too and find their weights in shared memory.
        import safetensors

        self.path = path
        try:
            found = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        except (OSError, safetensors.SafetensorError) as error:
            raise FileError(f"cannot read {path}: {error}: give a model's folder") from error
        self._tensors: Mapping[str, Mapping[str, Any]] = dict(found)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def get(self, name: str, transposed: bool = True) -> Float32:
        """Hugging Face keeps outputs by inputs; ``transposed`` turns that round."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise ModelError(f"{self.path} has no {name}: is it a Qwen3-MoE's?")
        if tensor["dtype"] == "BF16":  # the upper half of a float32
            raw = np.frombuffer(tensor["data"], dtype="<u2").astype(np.uint32) << 16
            values: Float32 = raw.view(np.float32)
        elif tensor["dtype"] == "F32":
            values = np.frombuffer(tensor["data"], dtype="<f4")
        else:
            raise ModelError(
                f"{self.path}: {name} is {tensor['dtype']}: the local engine reads BF16 and F32"
            )
        shape = tensor["shape"]
        if math.prod(shape) != values.size:
            raise FileError(f"{self.path}: {name} has {values.size} numbers: it must be {shape}")
        shaped = values.reshape(shape)
        return np.ascontiguousarray(shaped.T) if transposed else shaped
