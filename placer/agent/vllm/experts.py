"""Where a model's experts are, and how vLLM lets what is routed to them be seen.

In three ways, as vLLM's own capture of routed experts does: layers that hand their choices to a
``capture_fn`` of their own (MegaMoE: DeepSeek-V4, Kimi-K3), kernels that route by themselves and
write down what they chose, and routers that are asked before the kernel.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (
    RoutedExpertsCaptureSource,
    RoutedExpertsSink,
)
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

Capture = Callable[[torch.Tensor], None]
OTHER_KERNEL = "start vLLM with another --moe-backend, such as triton"


@dataclass(frozen=True, slots=True, eq=False)
class ExpertLayer:
    """One layer's experts.

    slots:    physical experts, of all ranks
    bind:     hands its choices, logical ids [tokens, top_k], to a function; None takes that away
    unseen:   why there is no such way, and what would make one; empty if there is
    is_taken: whether somebody else has it
    is_split: whether each tensor-parallel rank routes other tokens
    """

    id: int
    experts: int
    top_k: int
    slots: int
    bind: Callable[[Capture | None], None]
    unseen: str = ""
    is_taken: bool = False
    is_split: bool = False


def expert_layers(model: torch.nn.Module) -> list[ExpertLayer]:
    """In the order of the model's layers."""
    found = []
    for module in model.modules():
        if isinstance(module, MoERunner):
            found.append(_of_runner(module))
        elif isinstance(module, RoutedExpertsCaptureSource):
            found.append(_of_source(module))
    return sorted(found, key=lambda layer: layer.id)


def kinds(model: torch.nn.Module) -> list[str]:
    """The classes that look like experts."""
    names = {type(module).__name__ for module in model.modules()}
    return sorted(name for name in names if re.search("expert|moe", name, re.IGNORECASE))


def unfused() -> str:
    """What a capture function keeps this model from doing in one kernel; empty if nothing."""
    if any(
        name.startswith("vllm.models.deepseek_v41.") and name.endswith(".routed_expert_gemm")
        for name in sys.modules
    ):
        return "the fused front of DeepSeek-V4.1's decode steps"
    return ""


def _of_source(module: Any) -> ExpertLayer:
    def bind(capture: Capture | None) -> None:
        module.capture_fn = capture

    names = ("num_logical_experts", "top_k", "num_experts")
    experts, top_k, slots = (int(getattr(module, name, 0)) for name in names)
    unseen = f"{type(module).__name__} does not say how many experts it has: {OTHER_KERNEL}"
    return ExpertLayer(
        module.layer_id,
        experts,
        top_k,
        slots,
        bind,
        "" if experts and top_k else unseen,
        is_taken=module.capture_fn is not None,
    )


def _of_runner(runner: Any) -> ExpertLayer:
    config, router = runner.moe_config, runner.router
    unseen, bind = "", getattr(router, "set_capture_fn", _nothing)
    taken = getattr(router, "capture_fn", None) is not None
    if runner._quant_method.is_monolithic:
        kernel = _kernel(runner)
        routed = runner.routed_experts
        taken = getattr(routed, "routing_sink", None) is not None

        def bind(capture: Capture | None) -> None:
            sink = None if capture is None else RoutedExpertsSink(kernel.moe_config, capture)
            routed.routing_sink = sink

        if kernel is None or not kernel.supports_routing_replay_capture():
            name = type(kernel or runner._quant_method).__name__
            unseen = f"{name} routes inside its kernel and does not tell: {OTHER_KERNEL}"
    elif not isinstance(router, BaseRouter):
        unseen = f"{type(router).__name__} does not tell what it chooses: {OTHER_KERNEL}"
    return ExpertLayer(
        runner.layer_id,
        config.num_logical_experts,
        config.experts_per_token,
        config.num_experts,
        bind,
        unseen,
        taken,
        config.is_sequence_parallel,
    )


def _kernel(runner: Any) -> Any:
    """Of a method that routes by itself, if it has one that can be asked."""
    found = runner._quant_method
    for name in ("moe_kernel", "impl", "fused_experts"):
        found = getattr(found, name, None)
    return found if hasattr(found, "supports_routing_replay_capture") else None


def _nothing(capture: Capture | None) -> None:
    pass
