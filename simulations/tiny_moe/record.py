"""Record the example model's routing on text that it was not trained on.

    python simulations/tiny_moe/record.py         # about a minute on 2 cores

Writes ``traces/{prose,code,tables}.npz``: one prefill trace a domain, experts in the order of
their gates. Needs the ``train`` extra.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from corpus import DOMAINS, split
from transformers import Qwen3MoeForCausalLM

from placer.files.routing import write_trace
from placer.files.specs import read_model
from placer.trace import Trace

HERE = Path(__file__).parent
SEQUENCES = 112
LENGTH = 256


def held_out_sequences(domain: str) -> torch.Tensor:
    """[sequences, length] byte ids, taken evenly from all held-out documents."""
    text = b"\n\n".join(split(domain)[1])
    starts = np.linspace(0, len(text) - LENGTH, SEQUENCES).astype(int)
    rows = [np.frombuffer(text[start : start + LENGTH], dtype=np.uint8) for start in starts]
    return torch.from_numpy(np.stack(rows)).long()


def main() -> None:
    model = Qwen3MoeForCausalLM.from_pretrained(HERE / "model", dtype=torch.float32).eval()
    top_k = model.config.num_experts_per_tok
    shape = replace(read_model(str(HERE / "model" / "config.json")), name="tiny-moe")
    for domain in DOMAINS:
        ids = held_out_sequences(domain)
        with torch.inference_mode():
            out = model(input_ids=ids, labels=ids, output_router_logits=True)
        # One [tokens, experts] a layer; the sequences lie end to end.
        chosen = torch.stack([logits.topk(top_k).indices for logits in out.router_logits], dim=1)
        trace = Trace(
            expert_ids=chosen.numpy(),
            seq_lens=np.full(SEQUENCES, LENGTH),
            experts=shape.experts,
            token_ids=ids.flatten().numpy(),
            meta={"phase": "prefill", "domain": domain, "recorder": "transformers"},
        )
        path = HERE / "traces" / f"{domain}.npz"
        path.parent.mkdir(exist_ok=True)
        write_trace(path, trace, shape)
        loss = (out.loss).item()
        print(f"{path}: {trace.tokens} tokens, loss {loss:.3f}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
