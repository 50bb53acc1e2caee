"""Record the example model's routing on text that it was not trained on, in a real vLLM.

    python examples/tiny_moe/record.py         # two minutes on 2 cores

Serves each domain's text with `placer record`, as a user would, and keeps the agent's traces as
``traces/{prose,code,tables}.npz``. Needs vLLM beside placer: `make test-vllm` installs it.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from corpus import DOMAINS, split

from placer.agent import folder
from placer.files.routing import read_trace, write_trace
from placer.files.specs import read_model

HERE = Path(__file__).parent
SEQUENCES = 112
LENGTH = 256


def held_out_sequences(domain: str) -> list[list[int]]:
    """Byte ids, taken evenly from all held-out documents."""
    text = b"\n\n".join(split(domain)[1])
    starts = np.linspace(0, len(text) - LENGTH, SEQUENCES).astype(int)
    return [list(text[start : start + LENGTH]) for start in starts]


def serve(domain: str) -> None:
    """Let the engine read the text. It generates a token each, which is not routed any more."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(HERE / "model"),
        dtype="float32",
        enforce_eager=True,
        skip_tokenizer_init=True,
        max_model_len=LENGTH + 1,
        enable_prefix_caching=False,
    )
    prompts = [{"prompt_token_ids": ids} for ids in held_out_sequences(domain)]
    llm.generate(prompts, SamplingParams(max_tokens=1, detokenize=False))


def main() -> None:
    shape = replace(read_model(str(HERE / "model" / "config.json")), name="tiny-moe")
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    for domain in DOMAINS:
        with TemporaryDirectory() as place:
            command = [sys.executable, "-m", "placer.cli.main", "record", "--out", place, "--"]
            command += [sys.executable, __file__, domain]
            subprocess.run(command, env={**os.environ, **settings}, check=True)
            (recorded,) = folder.traces(Path(place))
            trace = read_trace(recorded, shape)
        assert trace.sequences == SEQUENCES
        path = HERE / "traces" / f"{domain}.npz"
        meta = {"phase": "prefill", "domain": domain, "recorder": "placer agent in vLLM"}
        write_trace(path, replace(trace, meta=meta), shape)
        print(f"{path}: {trace.tokens} tokens, {path.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        serve(sys.argv[1])
    else:
        main()
