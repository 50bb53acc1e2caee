"""What transformers' own router chooses for the same text, on one process."""

from functools import cached_property

import numpy as np
import torch

from placer.profile import Profile, of_trace
from placer.trace import Trace
from tests.vllm.engines import MODEL


class Oracle:
    """Prompts with what followed. A request's last token was generated but never routed."""

    def __init__(self, prompts: list[list[int]], generated: list[list[int]]) -> None:
        self.prompts = prompts
        self.sequences = [a + b[:-1] for a, b in zip(prompts, generated, strict=True)]

    @cached_property
    def routing(self) -> list[np.ndarray]:
        """[tokens, layers, top_k] of each sequence."""
        from transformers import Qwen3MoeForCausalLM

        model = Qwen3MoeForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
        found = []
        for sequence in self.sequences:
            with torch.inference_mode():
                out = model(input_ids=torch.tensor([sequence]), output_router_logits=True)
            top_k = model.config.num_experts_per_tok
            chosen = [logits.topk(top_k).indices for logits in out.router_logits]
            found.append(torch.stack(chosen, dim=1).numpy())
        return found

    def profile(self, phase: str) -> Profile:
        """Of the prompts' tokens, or of those that followed."""
        parts = [
            ids[: len(prompt)] if phase == "prefill" else ids[len(prompt) :]
            for ids, prompt in zip(self.routing, self.prompts, strict=True)
        ]
        lens = np.array([len(part) for part in parts])
        return of_trace(Trace(np.concatenate(parts), lens, experts=16))
