"""What is seen of vLLM, by one that generates a token of each request in a step."""

import sys
from pathlib import Path

import numpy as np
import pytest

from placer.errors import PlacerError
from placer.placement import linear
from simulations.arrivals import Arrivals
from simulations.fidelity.vllm import Server

LAYERS, EXPERTS, RANKS = 2, 4, 2
EVEN = linear(LAYERS, EXPERTS, EXPERTS, RANKS)
TORCH = """
class tensor:
    def __init__(self, values):
        self.values = values

    def __float__(self):
        return float(self.values[0])

    def __int__(self):
        return int(self.values[0])

    def clone(self):
        return self

    flatten = clone

    def tolist(self):
        return self.values
"""
VLLM = """
import os
import socket
from types import SimpleNamespace

import torch
from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed
from vllm.distributed.parallel_state import group
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

assert os.environ["RANK"] == os.environ["LOCAL_RANK"]


class SamplingParams:
    def __init__(self, max_tokens, **_):
        self.max_tokens = max_tokens


class LLM:
    def __init__(self, model, tensor_parallel_size, distributed_executor_backend, **_):
        assert distributed_executor_backend == "external_launcher"
        assert "//" not in _CPUSHMDistributed.make_group_name(self)
        self.llm_engine, self.left, self.tokens = self, {}, {}

    def add_request(self, name, prompt, how):
        self.left[name], self.tokens[name] = how.max_tokens, []

    def has_unfinished_requests(self):
        return bool(self.left)

    def step(self):
        for layer in range(2):
            CPUUnquantizedExperts().apply(topk_ids=torch.tensor([0, 1, 2 + layer]))
        group.all_reduce(torch.tensor([0]))
        found = []
        for name in list(self.left):
            self.tokens[name].append(0)
            outputs = [SimpleNamespace(token_ids=list(self.tokens[name]))]
            found.append(SimpleNamespace(request_id=name, outputs=outputs))
            self.left[name] -= 1
            if not self.left[name]:
                del self.left[name]
        return found
"""
STATE = """
import os
import socket
import time


class Group:
    \"\"\"The second rank takes what the first says.\"\"\"

    def __init__(self):
        self.world_size, address = 2, ("127.0.0.1", int(os.environ["MASTER_PORT"]))
        if os.environ["RANK"] == "0":
            with socket.create_server(address) as server:
                self.other = server.accept()[0]
        else:
            for _ in range(1000):
                try:
                    self.other = socket.create_connection(address)
                    return
                except OSError:
                    time.sleep(0.01)

    def all_reduce(self, mine):
        if os.environ["RANK"] == "0":
            self.other.sendall(bytes([int(mine)]))
            return mine
        mine.values = list(self.other.recv(1))
        return mine

    def all_gather(self, mine):
        return mine


group = Group()


def get_tp_group():
    return group
"""
FILES = {
    "torch.py": TORCH,
    "vllm/__init__.py": VLLM,
    "vllm/distributed/device_communicators/cpu_communicator.py": """
class _CPUSHMDistributed:
    @staticmethod
    def make_group_name(communicator):
        return "//-tp"
""",
    "vllm/distributed/parallel_state.py": STATE,
    "vllm/model_executor/layers/fused_moe/experts/cpu_moe.py": """
class CPUUnquantizedExperts:
    def apply(self, topk_ids):
        pass
""",
}


def test_a_python_without_vllm_is_told_of() -> None:
    with pytest.raises(PlacerError, match=r"vLLM ended with 1: .*No module named 'vllm'"):
        Server(Path(sys.executable), Path(), EVEN)


@pytest.mark.slow
def test_ranks_serve_part_after_part_and_all_take_up_what_the_first_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    asked = Arrivals(np.array([0.0, 0.05]), np.array([5, 7]), np.array([3, 1]))
    with Server(Path(sys.executable), tmp_path, EVEN) as server:
        for seed in (1, 2):
            server.serve(asked, seed)
        seen = server.seen()
    assert (seen.arrivals.at_s <= seen.first_s).all()
    assert (seen.first_s < seen.last_s).tolist() == [True, False] * 2
    steps = seen.steps
    assert steps is not None
    assert steps.tokens.T.tolist() == [[5, 1, 1, 7] * 2] * RANKS
    assert steps.begun.T.tolist() == [[1, 0, 0, 1] * 2] * RANKS
    assert steps.active.tolist() == [[[2, 1], [2, 1]]] * 8  # experts 0 and 1 of the first rank
    assert seen.load.tolist() == [[8, 8, 8, 0], [8, 8, 0, 8]]
    assert seen.rank_load.tolist() == [[16, 8]] * LAYERS
    assert (steps.waited_s > 0).all()
    assert (steps.waited_s[:, 0] < steps.seconds).all()
