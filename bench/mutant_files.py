"""The files that mutants are made of, one of each kind, and the commands that read them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

PLACE = "--gpus 2 --optimizer {optimizer}"
ENGINES = {"vllm": "json", "sglang": "json", "vllm-ascend": "json", "trtllm": "yaml"}


class Kind(NamedTuple):
    """``syntax``: json, yaml or npz. ``commands`` read ``{file}``."""

    name: str
    syntax: str
    original: str
    commands: Sequence[str]


KINDS = (
    Kind("trace", "npz", "t.npz", (
        "show {file}",
        "profile {file} --out x.npz",
        f"plan {{file}} {PLACE} --json",
        f"plan {{file}} {PLACE} --holdout 0.5 --out x.json",
        "whatif {file} --gpus 2,4 --redundant 0,8",
        "score plan.json --trace {file}",
        "tables {file} --plan plan.json --out x.npz",
        "predict {file} --tables tables.npz",
    )),
    Kind("tables", "npz", "tables.npz", (
        "predict t.npz --tables {file}",
        "predict t.npz --tables {file} --plan plan.json --json",
    )),
    Kind("profile", "npz", "p.npz", (
        "show {file}",
        "profile {file} t.npz --out x.npz",
        f"plan {{file}} {PLACE} --redundant 2",
        "whatif {file} --gpus 2 --json",
    )),
    Kind("plan", "json", "plan.json", (
        "show {file}",
        "check {file}",
        "check {file} --json",
        "score {file} --trace t.npz",
        f"plan t.npz {PLACE} --redundant 2 --current {{file}} --out x.json --html x.html",
        "whatif t.npz --gpus 2 --redundant 2 --current {file}",
        "export {file} --format vllm --out x",
        "export {file} --format sglang --out x",
        "export {file} --format trtllm --out x",
        "export {file} --format vllm-ascend --out x",
        "apply {file} --to agents --wait 0",
    )),
    Kind("model", "yaml", "model.yaml", (
        f"plan t.npz {PLACE} --model {{file}} --out x.json --html x.html",
        "profile t.npz --model {file} --out x.npz",
        "whatif p.npz --gpus 2 --model {file}",
        "export plan.json --format sglang --model {file} --out x",
        "import trtllm.yaml --format trtllm --gpus 2 --model {file} --out x.json",
    )),
    Kind("config", "json", "config.json", (
        f"plan t.npz {PLACE} --model {{file}} --json",
        "show {file}",
        "import vllm.json --format vllm --gpus 2 --model {file} --out x.json",
    )),
    Kind("topology", "yaml", "topology.yaml", (
        "plan t.npz --topology {file} --optimizer eplb --html x.html",
        "whatif t.npz --topology {file} --gpus 2,4 --redundant 0",  # of any size takes its time
    )),
    *(
        Kind(name, syntax, f"{name}.{syntax}", (
            f"import {{file}} --format {name} --gpus 2 --out x.json",
            f"import {{file}} --format {name} --model model.yaml --out x.json",
        ))
        for name, syntax in ENGINES.items()
    ),
    Kind("loads", "json", "loads.json", (
        "import {file} --format sglang --gpus 2 --out x.json",
        "profile {file} --out x.npz",
    )),
    Kind("loads", "npz", "loads.npz", (
        "show {file}",
        "profile {file} --model model.yaml --out x.npz",
    )),
    Kind("controller", "yaml", "controller.yaml", ("serve --config {file} --tls-cert none.pem",)),
    Kind("tokens", "yaml", "tokens.yaml", ("serve --tokens {file} --ledger t.npz",)),
    Kind("status", "json", "agents/worker-0/status.json", (
        "apply plan.json --to mutants --wait 0",
    )),
)  # fmt: skip


def write_originals() -> None:
    """In this folder: a model of 2 layers x 8 experts, and all that there may be of it."""
    model = {"layers": 2, "experts": 8, "top_k": 2, "hidden": 64, "moe_intermediate": 32}
    told = {**model, "groups": 2, "weight_bits": 8.5, "other_bytes": 1000}
    Path("model.yaml").write_text("".join(f"{key}: {value}\n" for key, value in told.items()))
    config = {
        "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_local_experts": 8, "num_experts_per_tok": 2, "n_group": None,
        "quantization_config": {"quant_method": "fp8", "bits": 8},
    }  # fmt: skip
    Path("config.json").write_text(json.dumps(config))
    Path("topology.yaml").write_text(
        "preset: h100\ngpus: 4\nnodes: 2\ngpu: {memory_gb: 96}\n"
        "local: {gigabytes_per_s: 450, latency_us: 3}\nnetwork: {latency_us: 8.5}\n"
    )
    Path("controller.yaml").write_text(
        "every_s: 30\ndefault: {mode: advisory, topology: h100, hours: ['22:00-06:00']}\n"
        "pools: {chat: {window_s: 600, max_moved: 0.2, topology: topology.yaml, nodes: 1}}\n"
    )
    Path("tokens.yaml").write_text(f"agent: [{'a' * 32}]\noperator:\n- {'b' * 32}\n")
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((60, 2, 8)), axis=2)[:, :, :2].astype(np.uint8)
    meta = {"model": {"name": "tiny", **model}, "phase": "decode", "format": "placer.trace"}
    np.savez_compressed(
        "t.npz", expert_ids=ids, seq_lens=np.array([20, 25, 15]), token_ids=np.arange(60),
        gates=rng.random(ids.shape).astype(np.float16), meta=np.array(json.dumps(meta)),
    )  # fmt: skip
    counts = rng.integers(0, 50, (3, 2, 8))
    np.savez("loads.npz", logical_count=counts)
    Path("loads.json").write_text(json.dumps({"logical_count": counts.tolist()}))
    _placer("profile t.npz --out p.npz")
    _placer("plan t.npz --gpus 2 --redundant 2 --optimizer eplb --out plan.json")
    _placer("tables t.npz --plan plan.json --out tables.npz")
    for name, syntax in ENGINES.items():
        _placer(f"export plan.json --format {name} --out {name}.{syntax}")
    worker = {
        "name": "worker-0", "model": "tiny", "layers": 2, "experts": 8, "top_k": 2, "slots": 10,
        "ep_rank": 0, "ep_size": 2, "can_apply": True, "records": True,
    }  # fmt: skip
    for rank in range(2):
        status = {"worker": {**worker, "name": f"worker-{rank}", "ep_rank": rank}, "epoch": 0}
        for folder in ("agents", "mutants"):
            path = Path(folder, f"worker-{rank}", "status.json")
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(status))


def _placer(args: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "placer.cli.main", *args.split()], check=True, capture_output=True
    )
