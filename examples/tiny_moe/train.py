"""Train the example model: a byte-level Qwen3-MoE with 2.7 million parameters.

    python examples/tiny_moe/train.py          # about 15 minutes on 2 cores

Writes ``model/`` (safetensors in bfloat16, config) and ``loss.csv``.
Needs the ``train`` extra: torch and transformers.
"""

import csv
import math
import time
from pathlib import Path

import torch
from corpus import DOMAINS, split
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

HERE = Path(__file__).parent
STEPS = 1800
BATCH = 18  # sequences; a third from each domain
LENGTH = 256  # bytes a sequence
PEAK_LR = 2e-3
WARMUP = 100
LOG_EVERY = 25

CONFIG = Qwen3MoeConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    moe_intermediate_size=64,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    num_experts=16,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    router_aux_loss_coef=0.001,
    output_router_logits=True,
    max_position_embeddings=1024,
    tie_word_embeddings=True,
    bos_token_id=None,
    eos_token_id=None,
)


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    if step < WARMUP:
        return PEAK_LR * (step + 1) / WARMUP
    progress = (step - WARMUP) / (STEPS - WARMUP)
    return PEAK_LR * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def main() -> None:
    torch.manual_seed(0)
    texts = [torch.frombuffer(bytearray(split(d)[0]), dtype=torch.uint8) for d in DOMAINS]
    sampler = torch.Generator().manual_seed(0)

    def batch() -> torch.Tensor:
        rows = []
        for text in texts:
            starts = torch.randint(len(text) - LENGTH, (BATCH // len(texts),), generator=sampler)
            rows += [text[s : s + LENGTH] for s in starts.tolist()]
        return torch.stack(rows).long()

    model = Qwen3MoeForCausalLM(CONFIG)
    model.set_experts_implementation("grouped_mm")
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, betas=(0.9, 0.95))
    curve: list[tuple[int, float]] = []
    recent: list[float] = []
    begun = time.monotonic()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        ids = batch()
        out = model(input_ids=ids, labels=ids)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # The loss without the balancing term, in nats a byte.
        recent.append((out.loss - CONFIG.router_aux_loss_coef * out.aux_loss).item())
        if step == 0 or (step + 1) % LOG_EVERY == 0:
            curve.append((step + 1, sum(recent) / len(recent)))
            recent.clear()
            minutes = (time.monotonic() - begun) / 60
            print(f"step {step + 1:5d}  loss {curve[-1][1]:.3f}  {minutes:.1f} min", flush=True)

    model.config.output_router_logits = False
    model.to(torch.bfloat16).save_pretrained(HERE / "model")
    with (HERE / "loss.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "nats_per_byte"])
        writer.writerows((step, f"{loss:.4f}") for step, loss in curve)


if __name__ == "__main__":
    main()
