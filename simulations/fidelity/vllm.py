"""vLLM on CPUs: ranks with expert parallelism, a core each, in processes of their own."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np

from placer.arrays import FloatArray
from placer.cost.balance import rank_load
from placer.errors import PlacerError
from placer.placement import Placement
from simulations.arrivals import Arrivals
from simulations.fidelity import vllm_script
from simulations.fidelity.local import VOCABULARY
from simulations.fidelity.seen import Seen, Steps, joined

BUDGET = 2048  # tokens of a step, more than ever come


class Server:
    """A fresh engine with experts in order. It serves what comes, and then what comes next; in
    between it is stopped, since ranks of vLLM wait awake."""

    def __init__(self, python: Path, model: Path, placement: Placement) -> None:
        self._placement, self._served = placement, list[Seen]()
        self._ranks = list[_Rank]()
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
            command = [str(python), "-P", vllm_script.__file__, str(model.resolve())]
            for rank in range(placement.gpus):
                self._ranks.append(_Rank(command, folder, meet, rank, placement.gpus))
                stack.callback(self._ranks[-1].kill)
            for one in self._ranks:
                one.heard()
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
        self._signal(signal.SIGCONT)
        for one in self._ranks:
            one.tell(told)
        found = [one.heard() for one in self._ranks]
        self._signal(signal.SIGSTOP)
        self._served.append(_seen(arrivals, found, self._placement))

    def seen(self) -> Seen:
        """All that it served."""
        return joined(self._served)

    def _signal(self, signal: int) -> None:
        for one in self._ranks:
            one.signal(signal)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class _Rank:
    """A process of vLLM's external launcher. -P: where the script stands there is a vllm.py."""

    def __init__(
        self, command: Sequence[str], folder: Path, meet: Mapping[str, str], rank: int, ranks: int
    ) -> None:
        self._errors = folder / f"errors-{rank}"
        env = {
            **os.environ, **meet,
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
            "PLACER_AGENT": str(folder),
            "HF_HUB_OFFLINE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the script does
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [*command, str(ranks), str(rank)], env=env, text=True, start_new_session=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip

    def tell(self, told: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(told), file=self._process.stdin, flush=True)

    def heard(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(vllm_script.MARK):
                return json.loads(line.removeprefix(vllm_script.MARK))
        last = self._errors.read_text().strip().splitlines()[-1:]
        raise PlacerError(
            f"vLLM ended with {self._process.wait()}: {' '.join(last)}: see docs/agent.md"
        )

    def signal(self, signal: int) -> None:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(self._process.pid, signal)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.communicate()


def _seen(arrivals: Arrivals, found: Sequence[Any], placement: Placement) -> Seen:
    """found: of each rank; what all know is the first's"""
    first = found[0]
    used = np.array([[_counts(of, placement) for of in step] for step in first["experts"]])
    active = np.array([rank_load(np.minimum(step, 1.0), placement) for step in used])
    tokens, waited_s, begun = (
        np.array([one[what] for one in found]).T for what in ("tokens", "waited_s", "begun")
    )
    steps = Steps(np.array(first["took_s"]), tokens, active, waited_s, begun)
    load = used.sum(axis=0)
    first_s, last_s = np.array(first["first_s"]), np.array(first["last_s"])
    return Seen(arrivals, first_s, last_s, load, rank_load(load, placement), steps)


def _counts(experts: Sequence[int], placement: Placement) -> FloatArray:
    return np.bincount(experts, minlength=placement.experts).astype(np.float64)
