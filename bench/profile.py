"""`placer profile` of a million tokens of a DeepSeek-V3-sized model."""

import tempfile
from pathlib import Path

import numpy as np

from bench.timing import console, process

TOKENS, LAYERS, EXPERTS, TOP_K = 1_000_000, 58, 256, 8
SEQUENCE = 1000


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.npz"
        _write(trace)
        wall, peak = process("profile", str(trace), "--out", str(Path(folder) / "profile.npz"))
        console.print(
            f"profile: {TOKENS:,} tokens x {LAYERS} layers x top-{TOP_K} of {EXPERTS} "
            f"({trace.stat().st_size / 1e6:.0f} MB): {wall:.1f} s, peak {peak:.0f} MB, "
            "whole process"
        )


def _write(path: Path) -> None:
    """Skewed random routing: Zipf over a random order of the experts in each layer."""
    rng = np.random.default_rng(0)
    block, ids = 20_000, np.empty((TOKENS, LAYERS, TOP_K), dtype=np.uint8)
    for layer in range(LAYERS):
        skew = -0.8 * np.log(rng.permutation(EXPERTS) + 1)
        noise = rng.gumbel(size=(block, EXPERTS)) + skew
        chosen = np.argpartition(-noise, TOP_K, axis=1)[:, :TOP_K].astype(np.uint8)
        ids[:, layer] = np.tile(chosen, (TOKENS // block, 1))
    lens = np.full(TOKENS // SEQUENCE, SEQUENCE)
    np.savez_compressed(path, expert_ids=ids, seq_lens=lens)
