"""Expert parallelism and EPLB on vLLM's CPU backend. CPU only: to try and test without a GPU.

vLLM's CPU workers ignore the expert map, and its expert load balancer (EPLB) is written for
GPUs. `enable` adds what is missing, for unquantized experts, under tensor parallelism, with
synchronous rearrangement. Nothing here is used, or tested, on another platform.
"""

from functools import cache, wraps
from types import SimpleNamespace
from typing import Any

import torch
from vllm.config import parallel
from vllm.v1.worker.worker_base import WorkerWrapperBase

from placer.clock import SystemClock

CLOCK = SystemClock()
KNUTH = 2654435769
"""Multiplier of the hash by which vLLM spreads tokens over an expert's replicas."""


class _Seen:
    """An object as one vLLM module is to see it: with some of its names replaced."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Event:
    """What EPLB asks of a `torch.Event` to time a rearrangement."""

    def __init__(self, **_: Any) -> None:
        self.time = 0.0

    def record(self) -> None:
        self.time = CLOCK.monotonic()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "_Event") -> float:
        return 1000 * (end.time - self.time)


def map_and_record(
    topk_ids: torch.Tensor,
    expert_load_view: torch.Tensor,
    logical_to_physical_map: torch.Tensor,
    logical_replica_count: torch.Tensor,
    record_enabled: torch.Tensor,
    num_unpadded_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """The physical experts [tokens, k] of logical `topk_ids`; adds to the load of each.

    Equal to the GPU kernel, so that both choose the same replicas.
    """
    known = (topk_ids >= 0) & (topk_ids < len(logical_replica_count))
    logical = topk_ids.long().where(known, 0)
    token = torch.arange(len(topk_ids)).unsqueeze(1)
    replica = (token * KNUTH & 0xFFFFFFFF) % logical_replica_count[logical].clamp(min=1)
    physical = logical_to_physical_map[logical, replica].where(known, -1)
    counted = record_enabled & (physical >= 0) & (physical < len(expert_load_view))
    if num_unpadded_tokens is not None:
        counted = counted & (token < num_unpadded_tokens)
    slots = physical.where(counted, 0).flatten()
    expert_load_view.index_add_(0, slots, counted.flatten().to(expert_load_view.dtype))
    return physical.to(topk_ids.dtype)


def _compute_local_experts_only(experts: Any) -> None:
    """Make `experts` (a class) take the expert map, which their kernel does not know."""
    compute = experts.apply

    @wraps(compute)
    def apply(self: Any, *, expert_map: torch.Tensor | None, **tensors: Any) -> None:
        if expert_map is None:
            compute(self, expert_map=None, **tensors)
            return
        # EPLB marks choices that it could not map with -1, which would be the last.
        ids = tensors["topk_ids"]
        local = expert_map[ids.clamp(min=0)].masked_fill(ids < 0, -1)
        if (here := int(local.max())) < 0:
            tensors["output"].zero_()
            return
        # The kernel wants a valid expert for every choice: give it one that it computes anyway.
        away = local < 0
        tensors["topk_ids"] = local.masked_fill(away, here).to(ids.dtype)
        tensors["topk_weights"] = tensors["topk_weights"].masked_fill(away, 0)
        compute(self, expert_map=None, **tensors)
        if tensors["apply_router_weight_on_input"]:  # one choice a token, and no weight read
            tensors["output"].masked_fill_(away, 0)

    experts.apply = apply


def _balance_after_load(runner: Any) -> None:
    """Make `runner` (a class) set up EPLB for its model, as the GPU's does."""
    from vllm.distributed.eplb.eplb_state import EplbState
    from vllm.model_executor.models.interfaces import get_mixture_of_experts_model

    load = runner.load_model

    @wraps(load)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        load(self, *args, **kwargs)
        if not self.parallel_config.enable_eplb or self.eplb_state is not None:
            return
        if self.parallel_config.eplb_config.use_async:
            raise ValueError("EPLB on CPU is synchronous: set use_async to false in eplb_config")
        model = get_mixture_of_experts_model(self.model)
        if model is None:
            raise ValueError("EPLB needs a mixture-of-experts model")
        # Only now: loading packs the weights anew, and EPLB keeps views of them.
        self.eplb_state = EplbState(self.parallel_config, self.device)
        self.eplb_state.add_model(model, self.model_config)
        self._moe_model = model

    runner.load_model = load_model


@cache
def _patch_worker() -> None:
    from vllm.distributed.eplb import eplb_communicator, eplb_state
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.fused_moe.router import base_router
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    _compute_local_experts_only(CPUUnquantizedExperts)
    base_router.eplb_map_to_physical_and_record = map_and_record
    _balance_after_load(CPUModelRunner)
    # A CPU has no accelerator to time, and no stream to wait for.
    eplb_state.torch = _Seen(torch, Event=_Event)
    stream = SimpleNamespace(synchronize=lambda: None)
    accelerator = _Seen(torch.accelerator, current_stream=lambda: stream)
    eplb_communicator.torch = _Seen(torch, accelerator=accelerator)


@cache
def enable() -> None:
    """Let this vLLM process use expert parallelism and EPLB on CPU. Again: nothing more."""
    # The check of `enable_eplb` is the only one there that asks this.
    parallel.current_platform = _Seen(parallel.current_platform, is_cuda_alike=lambda: True)
    init_device = WorkerWrapperBase.init_device

    @wraps(init_device)
    def patch_and_init_device(self: Any) -> None:
        # Not earlier: vLLM's CPU worker changes torch before it imports the model runner.
        _patch_worker()
        init_device(self)

    WorkerWrapperBase.init_device = patch_and_init_device
