"""Checkpoints of random weights, as large as they are wanted: outputs mean nothing, bytes do."""

import json
import math
from pathlib import Path

import numpy as np

from controller.local_engine.model.weights import _OF_LAYER, read_sizes

EXPERTS, TOP_K, HEADS, HEAD_DIM, VOCAB, CONTEXT = 16, 2, 4, 32, 256, 256


def random_model(folder: Path, layers: int, hidden: int, intermediate: int) -> int:
    """Bytes of its weights in float32, as the local engine keeps them."""
    folder.mkdir()
    config = {
        "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False, "hidden_act": "silu", "use_sliding_window": False,
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": intermediate,
        "moe_intermediate_size": intermediate, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "head_dim": HEAD_DIM, "num_experts": EXPERTS,
        "num_experts_per_tok": TOP_K, "vocab_size": VOCAB, "max_position_embeddings": CONTEXT,
        "norm_topk_prob": True, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "dtype": "bfloat16", "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    sizes = read_sizes(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layers):
        for ours, theirs in _OF_LAYER.items():
            shapes[f"model.layers.{layer}.{theirs}.weight"] = sizes.dense[f"{layer}.{ours}"][::-1]
        for expert in range(EXPERTS):
            prefix = f"model.layers.{layer}.mlp.experts.{expert}"
            shapes[f"{prefix}.gate_proj.weight"] = (intermediate, hidden)
            shapes[f"{prefix}.up_proj.weight"] = (intermediate, hidden)
            shapes[f"{prefix}.down_proj.weight"] = (hidden, intermediate)
    shapes["model.embed_tokens.weight"] = (VOCAB, hidden)
    shapes["model.norm.weight"] = (hidden,)
    shapes["lm_head.weight"] = (VOCAB, hidden)
    _write(folder / "model.safetensors", shapes)
    return 4 * sum(map(math.prod, shapes.values()))


def _write(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """BF16, scaled so that activations stay finite."""
    lots, at, header = np.random.default_rng(0), 0, {}
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            if len(shape) == 1:
                values = np.ones(shape, dtype=np.float32)
            else:
                values = lots.standard_normal(shape, dtype=np.float32)
                values /= np.float32(shape[-1]) ** 0.5
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
