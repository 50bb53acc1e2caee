"""DeepSeek's balancer at DeepSeek-V3's size: ours, and vLLM's beside it where it is installed."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich.table import Table

from bench.timing import console, medians_ms
from placer.cost.balance import by_layer, rank_load
from placer.packing import rebalance
from placer.placement import Placement

LAYERS, EXPERTS, SLOTS, GPUS = 58, 256, 288, 32
CASES = {"global": (1, 1), "4 nodes x 8 groups": (8, 4)}


def run() -> None:
    table = Table(title="eplb: 58 layers x 256 experts -> 288 slots on 32 GPUs, one core")
    for name in ("policy", "ours, ms", "vLLM's, ms", "ratio", "balancedness", "vLLM's - ours"):
        table.add_column(name, justify="right")
    load = np.random.default_rng(0).lognormal(0, 1, (LAYERS, EXPERTS))
    for name, (groups, nodes) in CASES.items():
        candidates = {"ours": _ours(load, groups, nodes)}
        if find_spec("vllm"):
            candidates["vllm"] = _vllm(load, groups, nodes)
        ms = medians_ms(candidates)
        balance = {which: _balancedness(load, f()) for which, f in candidates.items()}
        if "vllm" in ms:
            beside = [
                f"{ms['vllm']:.1f}",
                f"{ms['vllm'] / ms['ours']:.1f}x",
                f"{balance['ours']:.6f}",
                f"{balance['vllm'] - balance['ours']:.1e}",
            ]
        else:
            beside = ["not installed", "-", f"{balance['ours']:.6f}", "-"]
        table.add_row(name, f"{ms['ours']:.2f}", *beside)
    console.print(table)


def _ours(load: Any, groups: int, nodes: int) -> Callable[[], Any]:
    return lambda: rebalance(load, SLOTS, groups, nodes, GPUS)


def _vllm(load: Any, groups: int, nodes: int) -> Callable[[], Any]:
    import torch
    from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

    weight = torch.from_numpy(load)
    policy = DefaultEplbPolicy
    return lambda: policy.rebalance_experts(weight, SLOTS, groups, nodes, GPUS).numpy()


def _balancedness(load: Any, table: Any) -> float:
    placement = Placement(table, EXPERTS, GPUS)
    return float(by_layer(rank_load(load, placement)).mean())
