"""vLLM on CPUs: ranks with expert parallelism, a core each, in processes of their own."""

import json
import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from placer.cost.balance import rank_load
from placer.errors import PlacerError
from placer.files.routing import read_profile
from placer.placement import Placement
from simulations.arrivals import Arrivals
from simulations.fidelity import vllm_script
from simulations.fidelity.local import VOCABULARY
from simulations.fidelity.model import Engine, slowest
from simulations.fidelity.seen import Seen, Steps

BUDGET = 2048  # tokens of a step, more than ever come


def serve(
    python: Path, model: Path, engine: Engine, placement: Placement, arrivals: Arrivals, seed: int
) -> Seen:
    """By a fresh engine, with experts in order, whose prompts are drawn. Of its steps nobody knows
    the experts, which are those to be expected, and what ranks wait, which is taken for nothing."""
    lots = np.random.default_rng(seed)
    told = {
        "ranks": placement.gpus,
        "prompts": [lots.integers(VOCABULARY, size=size).tolist() for size in arrivals.prompt],
        "outputs": arrivals.output.tolist(),
        "at_s": arrivals.at_s.tolist(),
    }
    with TemporaryDirectory() as folder:
        env = {
            **os.environ,
            "PLACER_AGENT": folder,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(placement.gpus))),
        }
        # -P: where the script stands there is a vllm.py.
        command = [str(python), "-P", vllm_script.__file__, str(model.resolve())]
        done = subprocess.run(
            command, env=env, input=json.dumps(told), capture_output=True, text=True, check=False
        )
        lines = [one for one in done.stdout.splitlines() if one.startswith(vllm_script.MARK)]
        if not lines:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise PlacerError(
                f"vLLM ended with {done.returncode}: {' '.join(last)}: see docs/agent.md"
            )
        found = json.loads(lines[0].removeprefix(vllm_script.MARK))
        profiles = [read_profile(one) for one in sorted(Path(folder).glob("worker-*/*.npz"))]
    load = np.sum([one.load for one in profiles], axis=0)
    first_s, last_s, took_s = (np.array(found[one]) for one in ("first_s", "last_s", "took_s"))
    tokens = np.array(found["tokens"])[:, None]
    experts = slowest(engine, placement, load, tokens[:, 0])[:, None, None]
    steps = Steps(took_s, tokens, experts, np.zeros(tokens.shape))
    return Seen(arrivals, first_s, last_s, load, rank_load(load, placement), steps)
