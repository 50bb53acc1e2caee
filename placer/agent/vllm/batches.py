"""What a step of vLLM's was about: its requests, and which of the routed tokens are this rank's."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from vllm.forward_context import get_forward_context
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as GPUModelRunnerV2

from placer.agent.vllm.experts import Capture
from placer.agent.vllm.recorder import Batch

NONE = np.zeros(0, dtype=np.int64)


def capture_own(
    lost: Callable[[bool], None], capture: Capture, parallel: Any, expert_ids: torch.Tensor
) -> None:
    """Keep this rank's rows of a layer's choices; all ranks' may have been gathered before.

    lost: hears whether they came in an order that is not known
    """
    data_parallel, dp_rank = get_forward_context().dp_metadata, parallel.data_parallel_rank
    if data_parallel is None:
        capture(expert_ids)
        return
    tokens: list[int] = data_parallel.num_tokens_across_dp_cpu.tolist()
    gathered = getattr(data_parallel, "local_sizes", None) or tokens
    rows, own = len(expert_ids), tokens[dp_rank]
    shards = len(gathered) // len(tokens)  # of each rank
    lost(rows not in (own, sum(tokens), sum(gathered)))
    if rows == sum(gathered) and rows != own:
        first = sum(gathered[: dp_rank * shards])
        expert_ids = expert_ids[first : first + own]
    elif rows == sum(tokens) and rows != own:
        first = sum(tokens[:dp_rank])
        expert_ids = expert_ids[first : first + own]
    capture(expert_ids)


def batch_of(runner: Any, scheduled: Any) -> Batch | None:
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
