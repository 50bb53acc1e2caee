"""vLLM engines that share weights against engines that load them: time to the first token, and
memory, side by side, of a random model of about 840 MB on the CPU.

A new engine is a process from its start to its first token, the checkpoint in the page cache; a
standby is one from the request that makes it serve to its first token. Both are one process each
(vLLM's usual three take longer to start).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
from rich.table import Table

from bench.timing import console
from tests.vllm.engines import Engine
from tests.vllm.memory import Memory, an_hmm, memory_of

ROUNDS, PAIRS = 3, 10
REQUESTS, PROMPT, TOKENS = 16, 256, 40  # which use every expert
LAYERS, EXPERTS, HIDDEN, EXPERT, VOCABULARY = 8, 64, 512, 256, 1024
HEADS, KV_HEADS, HEAD = 8, 2, 64


def run() -> None:
    if find_spec("vllm") is None:
        console.print("shared weights: left out, vLLM is not installed (make test-vllm)")
        return
    with TemporaryDirectory() as name:
        place = Path(name)
        model = write_model(place / "model")
        with an_hmm(place / "hmm.sock"):
            _measure(place, model, place / "hmm.sock")


def _measure(place: Path, model: Path, hmm: Path) -> None:
    prompts = np.random.default_rng(0).integers(VOCABULARY, size=(REQUESTS, PROMPT)).tolist()
    one = [prompts[0][:16]]

    @contextmanager
    def started(name: str, hmm: Path | None = None, is_standby: bool = False) -> Iterator[Engine]:
        folder = place / name
        folder.mkdir(exist_ok=True)
        extra = {"standby": True} if is_standby else {}
        with Engine(
            folder, None, hmm=hmm, is_one_process=True, model=str(model), max_model_len=512,
            model_loader_extra_config=extra,
        ) as engine:  # fmt: skip
            yield engine

    seconds: dict[str, list[float]] = {}

    def first_token(name: str, engine: Engine, begun: float) -> None:
        engine.generate(one, 1)
        seconds.setdefault(name, []).append(perf_counter() - begun)

    with started("first", hmm) as first:
        for at in range(ROUNDS):
            begun = perf_counter()
            with started("disk") as disk:
                first_token("new engine, from disk", disk, begun)
                begun = perf_counter()
                with started("attached", hmm) as attached:
                    first_token("new engine, from the HMM", attached, begun)
                with started("standby", hmm, is_standby=True) as standby:
                    waiting = memory_of([standby.pid])
                    first_token("standby", standby, perf_counter())
                    first_token("engine that serves", standby, perf_counter())
                    if at < ROUNDS - 1:
                        continue
                    for engine in (disk, first, standby):
                        engine.generate(prompts, 1)
                    memory = {
                        "from disk": memory_of([disk.pid]),
                        "first, which loaded them": memory_of([first.pid]),
                        "standby, that serves": memory_of([standby.pid]),
                        "standby, with zero pages": waiting,
                    }
                    ratios = _speeds(disk, standby, prompts)
    console.print(_times(seconds))
    console.print(_memory(memory))
    console.print(
        f"tokens/s with shared weights over private: median {median(ratios):.3f} of {PAIRS} pairs"
    )


def _speeds(disk: Engine, shared: Engine, prompts: list[list[int]]) -> list[float]:
    ratios = []
    for pair in range(PAIRS):
        order = (disk, shared) if pair % 2 else (shared, disk)
        took = {engine: engine.generate(prompts[:4], TOKENS).seconds for engine in order}
        ratios.append(took[disk] / took[shared])
    return ratios


def _times(seconds: dict[str, list[float]]) -> Table:
    base = median(seconds["new engine, from disk"])
    table = Table(title=f"To the first token, medians of {ROUNDS}", title_justify="left")
    for column in ("", "s", "from", "to", "of a new engine"):
        table.add_column(column, justify="right")
    for name, found in seconds.items():
        cells = [f"{value:.3f}" for value in (median(found), min(found), max(found))]
        table.add_row(name, *cells, f"{median(found) / base:.4f}")
    return table


def _memory(memory: dict[str, Memory]) -> Table:
    base = memory["from disk"].private
    table = Table(title="Memory of an engine, MB, the last round", title_justify="left")
    for column in ("", "private", "weights mapped", "its share (PSS)", "private saved / mapped"):
        table.add_column(column, justify="right")
    for name, one in memory.items():
        saved = f"{(base - one.private) / one.mapped:.3f}" if one.mapped else ""
        cells = [f"{value / 1e6:.0f}" for value in (one.private, one.mapped, one.share)]
        table.add_row(name, *cells, saved)
    return table


def write_model(place: Path) -> Path:
    """A Qwen3-MoE of random weights, float32."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)

    def random(*shape: int) -> Any:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.05)

    tensors: dict[str, Any] = {"model.norm.weight": np.ones(HIDDEN, dtype=np.float32)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = random(VOCABULARY, HIDDEN)
    for at in range(LAYERS):
        layer = f"model.layers.{at}"
        for name, size in (("input_layernorm", HIDDEN), ("post_attention_layernorm", HIDDEN)):
            tensors[f"{layer}.{name}.weight"] = np.ones(size, dtype=np.float32)
        for name in ("q_norm", "k_norm"):
            tensors[f"{layer}.self_attn.{name}.weight"] = np.ones(HEAD, dtype=np.float32)
        tensors[f"{layer}.self_attn.q_proj.weight"] = random(HEADS * HEAD, HIDDEN)
        for name in ("k_proj", "v_proj"):
            tensors[f"{layer}.self_attn.{name}.weight"] = random(KV_HEADS * HEAD, HIDDEN)
        tensors[f"{layer}.self_attn.o_proj.weight"] = random(HIDDEN, HEADS * HEAD)
        tensors[f"{layer}.mlp.gate.weight"] = random(EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            for name in ("gate_proj", "up_proj"):
                tensors[f"{layer}.mlp.experts.{expert}.{name}.weight"] = random(EXPERT, HIDDEN)
            tensors[f"{layer}.mlp.experts.{expert}.down_proj.weight"] = random(HIDDEN, EXPERT)
    place.mkdir()
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "hidden_size": HIDDEN, "intermediate_size": HIDDEN, "moe_intermediate_size": EXPERT,
        "num_experts": EXPERTS, "num_experts_per_tok": 4, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
        "vocab_size": VOCABULARY, "max_position_embeddings": 1024, "tie_word_embeddings": False,
        "norm_topk_prob": True, "torch_dtype": "float32",
    }  # fmt: skip
    (place / "config.json").write_text(json.dumps(config))
    return place
