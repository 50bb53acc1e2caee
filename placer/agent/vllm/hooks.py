"""The one door to vLLM's insides, 0.32 and 0.33: where the agent hooks in, and what it reads there.

Hooks, set once a process: a model runner's ``load_model``, after which the routers are known, and
``execute_model``, one step; ``EplbState.rearrange``, and the balancing policy. What goes wrong in
a hook is logged once and ends the agent's work, not the engine's.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.distributed.eplb.eplb_state import EplbState
from vllm.distributed.parallel_state import get_ep_group, get_eplb_group, get_tp_group
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.platforms import current_platform
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as GPUModelRunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from placer.agent.reporter import Reporter
from placer.agent.sinks import OpenSink
from placer.agent.vllm.applying import Applying
from placer.agent.vllm.counters import Counters
from placer.agent.vllm.process_group import GroupRanks
from placer.agent.vllm.recorder import Batch, StepRecorder
from placer.clock import SystemClock
from placer.errors import ModelError
from placer.files.configs import read_config
from placer.model import ModelShape
from placer.worker import Worker

log = logging.getLogger("vllm.placer")

CLOCK = SystemClock()
NONE = np.zeros(0, dtype=np.int64)
Capture = Callable[[torch.Tensor], None]


class Agent:
    """Of one worker, from when its model is loaded."""

    def __init__(self, runner: Any, routers: list[Any], open_sink: OpenSink) -> None:
        config = runner.vllm_config
        parallel, moe = config.parallel_config, routers[0].moe_config
        tp_rank = get_tp_group().rank_in_group
        rank = parallel.data_parallel_rank * parallel.tensor_parallel_size + tp_rank
        self._runner, self._eplb = runner, runner.eplb_state
        reason = _cannot_record(config, routers, is_first=tp_rank == 0)
        self.worker = Worker(
            name=f"worker-{rank}",
            model=str(config.model_config.model),
            layers=len(routers),
            experts=moe.num_logical_experts,
            top_k=moe.experts_per_token,
            slots=moe.num_experts,
            ep_rank=get_ep_group().rank_in_group if moe.moe_parallel_config.use_ep else 0,
            ep_size=moe.moe_parallel_config.ep_size,
            can_apply=self._eplb is not None,
            records=not reason,
        )
        self.recorder = self.applying = None
        self.lost_rows = False  # whether a layer's choices came in an order that is not known
        if self.worker.records:
            self.recorder = self._record(config, routers, runner.device)
        sink = open_sink(self.worker, _shape(config, self.worker))
        if self._eplb is not None:  # last: a rank that cannot start must not announce itself
            self._ranks = GroupRanks(get_eplb_group().cpu_group)
            self.applying = Applying(self._look, self._eplb.policy, CLOCK)
            self.attach(self._eplb)
        self.reporter = Reporter(self.worker, sink, self.recorder, self.applying, CLOCK)
        does = ["records"] if self.worker.records else [f"records nothing ({reason})"]
        does.append(
            "applies plans; the engine no longer rebalances by itself once all ranks have agents"
            if self._eplb is not None
            else "applies nothing (start with --enable-eplb for that)"
        )
        log.info("placer: %s %s", self.worker.name, ", ".join(does))
        # Ends before the process does, unlike atexit in a process that multiprocessing began.
        Finalize(None, self.reporter.close, exitpriority=100)
        self.reporter.start()

    def attach(self, eplb: Any) -> None:
        """To an EplbState that is new: elastic EP may build one."""
        assert self.applying is not None
        if eplb.policy is not self.applying:
            self.applying.otherwise, eplb.policy = eplb.policy, self.applying
            self._eplb, EplbState.placer = eplb, self

    def _record(self, config: Any, routers: list[Any], device: torch.device) -> StepRecorder:
        worker, most = self.worker, config.scheduler_config.max_num_batched_tokens
        counters = Counters(worker.layers, worker.experts, worker.top_k, most, device)
        parallel = config.parallel_config
        is_parallel = parallel.data_parallel_size > 1 or parallel.enable_elastic_ep
        for at, router in enumerate(routers):
            capture = partial(counters.capture, at)
            if is_parallel:
                capture = partial(_capture_own, self, capture, parallel)
            router.router.set_capture_fn(capture)
        return StepRecorder(counters, CLOCK)

    def step(self, runner: Any, scheduled: Any, begun_s: float) -> None:
        """After each step."""
        if self.lost_rows and self.recorder is not None:
            log.warning("placer: records no more: it cannot tell this rank's tokens from others'")
            self.recorder = self.reporter.recorder = None
        if self.recorder is not None and (batch := _batch(runner, scheduled)) is not None:
            self.recorder.observe(batch, begun_s)
            self.reporter.tick()
        if self.applying is not None:
            self.applying.look()
            self.applying.verify(lambda: self._map().cpu().numpy())

    def _map(self) -> Any:
        """[layers, slots] of all ranks, as the engine has it."""
        state = next(iter(self._eplb.model_states.values()))  # one that drafts would come after
        return state.physical_to_logical_map

    def _look(self) -> tuple[GroupRanks, Worker]:
        """The group as it is now, and what the worker is in it."""
        group = get_eplb_group().cpu_group
        if group is not self._ranks.group:
            self._ranks = GroupRanks(group)
        ranks, slots = self._ranks, int(self._map().shape[1])
        return ranks, replace(self.worker, slots=slots, ep_rank=ranks.rank, ep_size=ranks.size)


def install(open_sink: OpenSink) -> None:
    """Hook into the model runners of this process."""
    runners: list[type] = [GPUModelRunner, GPUModelRunnerV2]
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        runners.append(CPUModelRunner)
    for runner in runners:
        if "load_model" in vars(runner):
            _after(runner, "load_model", partial(_loaded, open_sink))
        if "execute_model" in vars(runner):
            _after(runner, "execute_model", _stepped)
    rearrange = EplbState.rearrange

    @wraps(rearrange)
    def watched(self: Any, is_profile: bool = False, *args: Any, **kwargs: Any) -> Any:
        run = partial(rearrange, self, is_profile, *args, **kwargs)
        agent = getattr(self, "placer", None)
        if agent is None:
            return run()
        agent.attach(self)
        return agent.applying.rearranging(run, is_profile)

    EplbState.rearrange = watched


def _after(owner: type, name: str, then: Callable[..., None]) -> None:
    """Run ``then`` after a method, with its arguments and ``begun_s``; its errors end the agent
    alone."""
    method = getattr(owner, name)

    @wraps(method)
    def extended(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun_s = CLOCK.monotonic()
        result = method(self, *args, **kwargs)
        try:
            then(self, *args, begun_s=begun_s, **kwargs)
        except Exception:
            log.exception("placer: the agent stops, serving goes on")
            self.placer = None
        return result

    setattr(owner, name, extended)


def _loaded(open_sink: OpenSink, runner: Any, *_: Any, **__: Any) -> None:
    if getattr(runner, "placer", None) is not None:
        return
    routers = [module for module in runner.model.modules() if isinstance(module, MoERunner)]
    if not routers:
        log.info("placer: the model has no experts, nothing to do")
        return
    runner.placer = Agent(runner, sorted(routers, key=lambda one: one.layer_id), open_sink)


def _stepped(
    runner: Any, scheduled: Any, *_: Any, begun_s: float, dummy_run: bool = False, **__: Any
) -> None:
    if (agent := getattr(runner, "placer", None)) is not None and not dummy_run:
        agent.step(runner, scheduled, begun_s)


def _cannot_record(config: Any, routers: list[Any], is_first: bool) -> str:
    """Why this worker does not count; empty if it does."""
    if not is_first:
        return "tensor-parallel rank 0 sees the same tokens"
    if config.parallel_config.pipeline_parallel_size > 1:
        return "pipeline stages see only some of the layers"
    for router in routers:
        if not isinstance(router.router, BaseRouter) or router._quant_method.is_monolithic:
            return f"layer {router.layer_id} routes inside its kernel"
        if router.router.capture_fn is not None:
            return "vLLM's own capture of routed experts is on"
    if routers[0].moe_config.is_sequence_parallel:
        return "each tensor-parallel rank routes other tokens"
    return ""


def _capture_own(agent: Agent, capture: Capture, parallel: Any, expert_ids: torch.Tensor) -> None:
    """Keep this rank's rows of a layer's choices; all ranks' may have been gathered before."""
    data_parallel, dp_rank = get_forward_context().dp_metadata, parallel.data_parallel_rank
    if data_parallel is None:
        capture(expert_ids)
        return
    tokens: list[int] = data_parallel.num_tokens_across_dp_cpu.tolist()
    gathered = getattr(data_parallel, "local_sizes", None) or tokens
    rows, own = len(expert_ids), tokens[dp_rank]
    shards = len(gathered) // len(tokens)  # of each rank
    agent.lost_rows = rows not in (own, sum(tokens), sum(gathered))
    if rows == sum(gathered) and rows != own:
        first = sum(gathered[: dp_rank * shards])
        expert_ids = expert_ids[first : first + own]
    elif rows == sum(tokens) and rows != own:
        first = sum(tokens[:dp_rank])
        expert_ids = expert_ids[first : first + own]
    capture(expert_ids)


def _batch(runner: Any, scheduled: Any) -> Batch | None:
    """The step that just ran."""
    total = scheduled.total_num_scheduled_tokens
    requests: list[str] = []
    positions = prompts = NONE
    token_ids = None
    if total and isinstance(runner, GPUModelRunnerV2):
        if (state := runner.execute_model_state) is None:
            return None
        inputs = state.input_batch
        requests, token_ids = inputs.req_ids, inputs.input_ids
        positions, prompts = inputs.num_computed_tokens_np, inputs.prefill_len_np
    elif total:
        # Copies, since the engine goes on to change all of them.
        inputs = runner.input_batch
        requests, token_ids = inputs.req_ids[:], runner.input_ids.gpu
        positions = inputs.num_computed_tokens_cpu[: len(requests)].copy()
        prompts = inputs.num_prompt_tokens[: len(requests)].copy()
    return Batch(
        requests=requests,
        scheduled=scheduled.num_scheduled_tokens,
        total=total,
        positions=positions,
        prompts=prompts,
        token_ids=token_ids,
        new=[request.req_id for request in scheduled.scheduled_new_reqs],
        finished=scheduled.finished_req_ids,
    )


def _shape(config: Any, worker: Worker) -> ModelShape | None:
    """The model's sizes, if its config says them as others' do."""
    try:
        name = Path(worker.model).name
        shape = read_config(config.model_config.hf_config.to_dict(), name).shape
    except ModelError as error:
        log.warning("placer: the model's sizes are not known: %s", error)
        return None
    same = (shape.layers, shape.experts, shape.top_k) == (
        worker.layers, worker.experts, worker.top_k,
    )  # fmt: skip
    return shape if same else None
