"""vLLM on CPUs: ranks with expert parallelism, a core each, in processes of their own."""

import json
import os
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np

from placer.cost.balance import rank_load
from placer.errors import PlacerError
from placer.files.routing import read_profile
from placer.placement import Placement
from simulations.arrivals import Arrivals
from simulations.fidelity import vllm_script
from simulations.fidelity.local import VOCABULARY
from simulations.fidelity.model import Engine, slowest
from simulations.fidelity.seen import Seen, Steps, joined

BUDGET = 2048  # tokens of a step, more than ever come


class Server:
    """A fresh engine with experts in order. It serves what comes, and then what comes next; in
    between it is stopped, since ranks of vLLM wait awake."""

    def __init__(self, python: Path, model: Path, engine: Engine, placement: Placement) -> None:
        self._engine, self._placement = engine, placement
        self._served: list[tuple[Arrivals, Any]] = []
        ranks = placement.gpus
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(TemporaryDirectory()))
            self._errors = self._folder / "errors"
            env = {
                **os.environ,
                "PLACER_AGENT": str(self._folder),
                "HF_HUB_OFFLINE": "1",
                # As in a server, a request that comes during a step is in the next. From a process
                # of its own the engine begins that before it hears of it.
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
                "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(ranks))),
            }
            # -P: where the script stands there is a vllm.py.
            command = [str(python), "-P", vllm_script.__file__, str(model.resolve()), str(ranks)]
            with self._errors.open("w") as errors:
                self._process = stack.enter_context(
                    subprocess.Popen(
                        command, env=env, text=True, start_new_session=True,
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                    )
                )  # fmt: skip
            stack.callback(self._signal, signal.SIGKILL)
            self._heard()
            self._signal(signal.SIGSTOP)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def serve(self, arrivals: Arrivals, seed: int) -> None:
        """Prompts are drawn."""
        lots = np.random.default_rng(seed)
        told = {
            "prompts": [lots.integers(VOCABULARY, size=size).tolist() for size in arrivals.prompt],
            "outputs": arrivals.output.tolist(),
            "at_s": arrivals.at_s.tolist(),
        }
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        print(json.dumps(told), file=self._process.stdin, flush=True)
        self._served.append((arrivals, self._heard()))
        self._signal(signal.SIGSTOP)

    def seen(self) -> Seen:
        """All that it served, each part with as much of the load; it serves no more. Of its steps
        nobody knows the experts, which are those to be expected, and what ranks wait, which is
        taken for nothing."""
        self._signal(signal.SIGCONT)
        self._process.communicate()
        profiles = [read_profile(one) for one in sorted(self._folder.glob("worker-*/*.npz"))]
        load = np.sum([one.load for one in profiles], axis=0)
        return joined([self._part(*part, load / len(self._served)) for part in self._served])

    def _part(self, arrivals: Arrivals, found: Any, load: Any) -> Seen:
        placement = self._placement
        first_s, last_s, took_s = (np.array(found[one]) for one in ("first_s", "last_s", "took_s"))
        tokens = np.array(found["tokens"])[:, None]
        experts = slowest(self._engine, placement, load, tokens[:, 0])[:, None, None]
        steps = Steps(took_s, tokens, experts, np.zeros(tokens.shape))
        return Seen(arrivals, first_s, last_s, load, rank_load(load, placement), steps)

    def _heard(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(vllm_script.MARK):
                return json.loads(line.removeprefix(vllm_script.MARK))
        last = self._errors.read_text().strip().splitlines()[-1:]
        raise PlacerError(
            f"vLLM ended with {self._process.wait()}: {' '.join(last)}: see docs/agent.md"
        )

    def _signal(self, signal: int) -> None:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(self._process.pid, signal)
