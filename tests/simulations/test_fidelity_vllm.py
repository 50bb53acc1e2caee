"""What is seen of vLLM, by one that generates a token of each request in a step."""

import sys
from pathlib import Path

import numpy as np
import pytest

from placer.errors import PlacerError
from placer.placement import linear
from simulations.arrivals import Arrivals
from simulations.fidelity.model import Engine
from simulations.fidelity.vllm import BUDGET, Server
from tests.builders import a_model

LAYERS, EXPERTS = 2, 4
ENGINE = Engine(a_model(LAYERS, EXPERTS), BUDGET, is_split=True)
EVEN = linear(LAYERS, EXPERTS, EXPERTS, 2)
VLLM = """
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from placer.files.routing import write_profile
from placer.profile import Profile


class SamplingParams:
    def __init__(self, max_tokens, **_):
        self.max_tokens = max_tokens


class LLM:
    def __init__(self, model, **_):
        self.llm_engine, self.left, self.tokens = self, {}, {}
        folder = Path(os.environ["PLACER_AGENT"]) / "worker-0"
        folder.mkdir()
        load = np.full((2, 4), 6.0)
        write_profile(folder / "decode.npz", Profile(load, 1, 24.0, sequences=0, sampled=True))

    def add_request(self, name, prompt, how):
        self.left[name], self.tokens[name] = how.max_tokens, []

    def has_unfinished_requests(self):
        return bool(self.left)

    def step(self):
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


def test_a_python_without_vllm_is_told_of() -> None:
    with pytest.raises(PlacerError, match=r"vLLM ended with 1: .*No module named 'vllm'"):
        Server(Path(sys.executable), Path(), ENGINE, EVEN)


@pytest.mark.slow
def test_an_engine_serves_part_after_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm.py").write_text(VLLM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    asked = Arrivals(np.array([0.0, 0.05]), np.array([5, 7]), np.array([3, 1]))
    with Server(Path(sys.executable), tmp_path, ENGINE, EVEN) as server:
        for seed in (1, 2):
            server.serve(asked, seed)
        seen = server.seen()
    assert (seen.arrivals.at_s <= seen.first_s).all()
    assert (seen.first_s < seen.last_s).tolist() == [True, False] * 2
    assert seen.load.tolist() == [[6.0] * EXPERTS] * LAYERS
    assert seen.rank_load.tolist() == [[12.0, 12.0]] * LAYERS
    assert seen.steps is not None
    assert seen.steps.tokens.ravel().tolist() == [5, 1, 1, 7] * 2
    assert (seen.steps.active > 0).all()
