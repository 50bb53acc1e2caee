"""Expert parallelism on CPUs: a rank computes its own experts, and no other costs it anything."""

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")

import torch

from placer.agent.vllm.cpu import _compute_local_experts_only

MAP = torch.tensor([-1, -1, 0, 1], dtype=torch.int32)  # of four experts the last two


def kernel() -> Any:
    """Experts that remember what they were asked, and answer with the sum of the weights."""

    class Experts:
        def __init__(self) -> None:
            self.asked: list[list[list[int]]] = []

        def apply(
            self, expert_map: None, topk_ids: Any, topk_weights: Any, output: Any, **_: Any
        ) -> None:
            self.asked.append(topk_ids.tolist())
            output.copy_(topk_weights.sum(dim=1, keepdim=True))

    _compute_local_experts_only(Experts)
    return Experts()


def answered(experts: Any, ids: list[list[int]]) -> list[float]:
    output = torch.full((len(ids), 1), torch.nan)
    weights = torch.tensor([[1.0, 2.0]] * len(ids))
    experts.apply(
        expert_map=MAP, topk_ids=torch.tensor(ids), topk_weights=weights, output=output,
        apply_router_weight_on_input=False,
    )  # fmt: skip
    found: list[float] = output.flatten().tolist()
    return found


def test_choices_of_other_ranks_have_no_weight_and_no_expert_of_their_own() -> None:
    experts = kernel()
    assert answered(experts, [[3, 0], [1, 3], [-1, 0]]) == [1.0, 2.0, 0.0]
    assert experts.asked == [[[1, 1]] * 3]


def test_where_no_choice_is_of_this_rank_nothing_is_computed() -> None:
    experts = kernel()
    assert answered(experts, [[0, 1], [-1, 1]]) == [0.0, 0.0]
    assert not experts.asked
