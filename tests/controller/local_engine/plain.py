"""The model once more, plainly: a whole sequence at a time, no cache, as its paper has it."""

import json
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from placer.arrays import IntArray
from tests.controller.local_engine.tiny_engine import MODEL

Array = npt.NDArray[np.float64]


class Plain:
    """In float64, so that nobody shares its rounding."""

    @cached_property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((MODEL / "config.json").read_text())
        return found

    @cached_property
    def weights(self) -> dict[str, Array]:
        data = (MODEL / "model.safetensors").read_bytes()
        found = {}
        for name, tensor in safetensors.deserialize(data):  # type: ignore[no-untyped-call]
            bits = np.frombuffer(tensor["data"], dtype=np.uint16).astype(np.uint32) << 16
            found[name] = bits.view(np.float32).astype(np.float64).reshape(tensor["shape"])
        return found

    def routing(self, tokens: list[int]) -> tuple[IntArray, IntArray]:
        """[tokens, layers, top_k] experts, best first, and [tokens] the likeliest next token."""
        config, chosen = self.config, []
        x = self.weights["model.embed_tokens.weight"][tokens]
        for layer in range(config["num_hidden_layers"]):
            x = x + self.attention(layer, self.norm(f"layers.{layer}.input_layernorm", x))
            rows = self.norm(f"layers.{layer}.post_attention_layernorm", x)
            shares = softmax(self.linear(f"layers.{layer}.mlp.gate", rows))
            best = np.argsort(-shares, axis=1)[:, : config["num_experts_per_tok"]]
            mixed = np.zeros_like(x)
            for token, experts in enumerate(best):
                for expert in experts:
                    weight = shares[token, expert] / shares[token, experts].sum()
                    mixed[token] += weight * self.expert(layer, expert, rows[token])
            x = x + mixed
            chosen.append(best)
        logits = self.norm("norm", x) @ self.weights["model.embed_tokens.weight"].T
        return np.stack(chosen, axis=1), logits.argmax(axis=1)

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"model.{name}.weight"].T

    def norm(self, name: str, x: Array) -> Array:
        scale = np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / scale * self.weights[f"model.{name}.weight"]

    def expert(self, layer: int, expert: int, x: Array) -> Array:
        prefix = f"layers.{layer}.mlp.experts.{expert}"
        gate = self.linear(f"{prefix}.gate_proj", x)
        up = self.linear(f"{prefix}.up_proj", x)
        return self.linear(f"{prefix}.down_proj", gate / (1 + np.exp(-gate)) * up)

    def attention(self, layer: int, x: Array) -> Array:
        prefix, size, count = f"layers.{layer}.self_attn", self.config["head_dim"], len(x)
        queries, keys, values = (
            self.linear(f"{prefix}.{name}_proj", x).reshape(count, -1, size).swapaxes(0, 1)
            for name in "qkv"
        )
        queries = self.rotated(self.norm(f"{prefix}.q_norm", queries))
        keys = self.rotated(self.norm(f"{prefix}.k_norm", keys))
        shared = len(queries) // len(keys)
        keys, values = np.repeat(keys, shared, axis=0), np.repeat(values, shared, axis=0)
        scores = queries @ keys.swapaxes(1, 2) / np.sqrt(size)
        scores[:, np.triu(np.ones((count, count), dtype=bool), 1)] = -np.inf
        mixed = softmax(scores) @ values
        return self.linear(f"{prefix}.o_proj", mixed.swapaxes(0, 1).reshape(count, -1))

    def rotated(self, x: Array) -> Array:
        """x: [heads, tokens, head_dim], by complex numbers"""
        half = x.shape[2] // 2
        theta = self.config["rope_parameters"]["rope_theta"]
        angles = np.outer(np.arange(x.shape[1]), theta ** (-np.arange(half) / half))
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], axis=-1)


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
