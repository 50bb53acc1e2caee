"""The forward pass of a Qwen3-MoE in numpy, bitwise the same for a token in any batch.

BLAS adds up in another order for other shapes. So every product is made token by token, in a shape
that depends on the model and the token's position alone, however many tokens a step has; and the
outputs of a token's experts are added in the order in which it chose them.
"""

import numpy as np

from controller.local_engine.model.weights import Dense, Float32, Sizes
from placer.arrays import IntArray


def product(rows: Float32, weight: Float32) -> Float32:
    """[tokens, in] by [in, out]: a vector by a matrix for each row"""
    return np.matmul(rows[:, None, :], weight)[:, 0]


def norm(x: Float32, weight: Float32, epsilon: float) -> Float32:
    """Root mean square over the last axis."""
    mean = np.vecdot(x, x)[..., None] / np.float32(x.shape[-1])
    return x / np.sqrt(mean + np.float32(epsilon)) * weight


def softmax(x: Float32) -> Float32:
    """Over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def expert(rows: Float32, page: Float32) -> Float32:
    """[tokens, hidden] what one expert makes of them"""
    hidden = rows.shape[1]
    half = page.size // 3 // hidden
    split = 2 * hidden * half
    gate, up = np.split(product(rows, page[:split].reshape(hidden, 2 * half)), 2, axis=1)
    return product(gate / (1 + np.exp(-gate)) * up, page[split:].reshape(half, hidden))


class Model:
    """All but the experts; it can be made before there are weights.

    cache: [seats, layers, 2, kv_heads, context, head_dim]
    """

    dense: Dense
    cache: Float32

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        frequencies = sizes.rope_theta ** (-np.arange(0, sizes.head_dim, 2) / sizes.head_dim)
        angles = np.tile(np.outer(np.arange(sizes.context), frequencies), 2)[:, None]
        self._cos, self._sin = np.cos(angles, dtype="f4"), np.sin(angles, dtype="f4")

    def embed(self, tokens: IntArray) -> Float32:
        return self.dense["embedding"][tokens]

    def attend(self, layer: int, x: Float32, seats: IntArray, positions: IntArray) -> Float32:
        """``x`` and what its tokens take from those before them, whose keys and values are in
        the cache; their own are added to it."""
        sizes, kv_heads, count = self.sizes, self.sizes.kv_heads, len(x)
        cache = self.cache[:, layer]
        rows = norm(x, self.dense[f"{layer}.attention_norm"], sizes.epsilon)
        queries, keys, values = (
            product(rows, self.dense[f"{layer}.{name}"]).reshape(count, heads, sizes.head_dim)
            for name, heads in (("query", sizes.heads), ("key", kv_heads), ("value", kv_heads))
        )
        keys = norm(keys, self.dense[f"{layer}.key_norm"], sizes.epsilon)
        queries = norm(queries, self.dense[f"{layer}.query_norm"], sizes.epsilon)
        cache[seats, 0, :, positions] = self._rotate(keys, positions)
        cache[seats, 1, :, positions] = values
        queries = self._rotate(queries, positions) * np.float32(sizes.head_dim**-0.5)
        groups = queries.reshape(count, kv_heads, sizes.heads // kv_heads, sizes.head_dim)
        mixed = np.empty_like(groups)
        for token in range(count):
            seen = cache[seats[token], :, :, : positions[token] + 1]
            shares = softmax(np.matmul(groups[token], seen[0].swapaxes(1, 2)))
            mixed[token] = np.matmul(shares, seen[1])
        flat = mixed.reshape(count, sizes.heads * sizes.head_dim)
        return x + product(flat, self.dense[f"{layer}.output"])

    def _rotate(self, x: Float32, positions: IntArray) -> Float32:
        """Rotary position embedding. x: [tokens, heads, head_dim]"""
        low, high = np.split(x, 2, axis=-1)
        turned = np.concatenate([-high, low], axis=-1)
        return x * self._cos[positions] + turned * self._sin[positions]

    def route(self, layer: int, x: Float32) -> tuple[Float32, IntArray, Float32]:
        """What goes to the experts [tokens, hidden], to which [tokens, top_k], best first, and
        what their outputs weigh [tokens, top_k]."""
        rows = norm(x, self.dense[f"{layer}.expert_norm"], self.sizes.epsilon)
        shares = softmax(product(rows, self.dense[f"{layer}.router"]))
        chosen = np.argsort(-shares, axis=1, kind="stable")[:, : self.sizes.top_k]
        weights = np.take_along_axis(shares, chosen, axis=1)
        if self.sizes.normalise_top_k:
            weights = weights / weights.sum(axis=1, keepdims=True)
        return rows, chosen, weights

    def combine(self, x: Float32, outputs: Float32, weights: Float32) -> Float32:
        """outputs: [tokens, top_k, hidden]; weights: [tokens, top_k]"""
        total = np.zeros_like(x)
        for choice in range(self.sizes.top_k):
            total += outputs[:, choice] * weights[:, choice, None]
        return x + total

    def next_tokens(self, x: Float32) -> IntArray:
        """[tokens] the likeliest; the lowest id of equals"""
        rows = norm(x, self.dense["norm"], self.sizes.epsilon)
        return product(rows, self.dense["head"]).argmax(axis=1)
