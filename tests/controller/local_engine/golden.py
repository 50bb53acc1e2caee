"""Writes golden.json: what transformers generates, greedily and in float32, with the example model.

From the repository's root, with any Python that has torch and transformers:

    python tests/controller/local_engine/golden.py

Prompts are text that ships with Python; they are stored, since it differs between versions.
"""

import inspect
import json
import textwrap
from pathlib import Path
from pydoc_data.topics import topics

TOKENS = 48
PROMPTS = (
    "d",
    "import os\nimport sys\n",
    "def parse(self, text):\n    ",
    "The following sections describe the standard types that are built into the interpreter.",
    inspect.getsource(textwrap.wrap)[:250],
    topics["binary"][:300],
    "class Error(Exception):\n    pass\n\n\nclass " + inspect.getsource(textwrap.dedent)[:330],
    topics["exceptions"][:520],
)


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        "examples/tiny_moe/model", dtype=torch.float32
    ).eval()
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([list(prompt.encode())])
        with torch.inference_mode():
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=TOKENS,
                do_sample=False,
            )
        found.append({"prompt": prompt, "tokens": made[0, ids.shape[1] :].tolist()})
    lines = ",\n".join(json.dumps(one) for one in found)
    Path(__file__).with_suffix(".json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
