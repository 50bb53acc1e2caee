"""Engines that share the example model's weights: one starts it all, one stands by, one is served
over HTTP. What they generate is what an engine generates that loaded the model from disk."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")

from placer.errors import PlacerError
from tests.processes import children
from tests.vllm.api_server import an_api_server
from tests.vllm.engines import MODEL, Engine
from tests.vllm.memory import Memory, an_hmm, memory_of
from tests.vllm.story import real_prompts

TOKENS, LONG = 40, 200
ZERO_PAGES = {"standby": True}
Ask = Callable[[str, Any], Any]


@dataclass
class Sharing:
    """What was seen. tokens, memory: by engine, in the order in which it happened"""

    socket: Path
    tokens: dict[str, list[list[int]]] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    http: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sharing]:
    place = tmp_path_factory.mktemp("shared")
    found = Sharing(place / "hmm.sock")
    with an_hmm(found.socket) as hmm, ExitStack() as stack, ThreadPoolExecutor() as threads:
        settings = [(None, {}), (found.socket, {}), (found.socket, ZERO_PAGES)]
        engines = threads.map(lambda one: stack.enter_context(_engine(place, *one)), settings)
        _tell(place, found, hmm.pid, *engines)
        yield found


def _engine(place: Path, hmm: Path | None, settings: dict[str, Any]) -> Engine:
    folder = Path(tempfile.mkdtemp(dir=place))
    return Engine(folder, None, hmm=hmm, is_one_process=True, model_loader_extra_config=settings)


def _tell(
    place: Path, found: Sharing, hmm: int, disk: Engine, first: Engine, standby: Engine
) -> None:
    prompts = real_prompts()[:4]
    found.tokens["disk"] = disk.generate(prompts, TOKENS).tokens
    found.tokens["disk, long"] = disk.generate(prompts, LONG).tokens
    found.memory["standby before"] = memory_of([standby.pid])
    found.tokens["first"] = first.generate(prompts, TOKENS).tokens
    found.memory["first alone"] = memory_of([first.pid])
    found.tokens["standby"] = standby.generate(prompts, TOKENS).tokens
    found.memory["first"] = memory_of([first.pid])
    found.memory["standby"] = memory_of([standby.pid])

    (server,) = children(hmm)
    os.kill(server, signal.SIGKILL)
    with (
        _standby(place, found.socket) as (ask, pids),
        ThreadPoolExecutor(1) as threads,
    ):
        found.http["attached"] = ask("/collective_rpc", {"method": "placer_attach"})
        found.http["again"] = ask("/collective_rpc", {"method": "placer_attach"})
        found.tokens["API server"] = _completed(ask, prompts, TOKENS)
        found.memory["API server"] = memory_of(pids())
        standby.begin(prompts, LONG)
        completing = threads.submit(_completed, ask, prompts, LONG)
        os.kill(first.pid, signal.SIGKILL)
        found.tokens["standby, long"] = standby.finish().tokens
        found.tokens["API server, long"] = completing.result()


def _completed(ask: Ask, prompts: list[list[int]], tokens: int) -> list[list[int]]:
    greedy = {"model": str(MODEL), "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = ask("/v1/completions", {**greedy, "prompt": prompts, "return_token_ids": True})
    return [one["token_ids"] for one in answer["choices"]]


@contextmanager
def _standby(place: Path, hmm: Path) -> Iterator[tuple[Ask, Callable[[], set[int]]]]:
    """One of `vllm serve`: what asks it, and its processes."""
    options = [
        "--load-format", "placer", "--model-loader-extra-config", json.dumps(ZERO_PAGES),
    ]  # fmt: skip
    more = {"VLLM_SERVER_DEV_MODE": "1", "PLACER_HMM": str(hmm)}
    with an_api_server(place, options, more) as server:
        yield server.ask, lambda: {server.pid, *children(server.pid)}


def test_whoever_maps_the_weights_generates_what_who_loaded_them_does(sharing: Sharing) -> None:
    want = sharing.tokens["disk"]
    assert len({token for one in want for token in one}) > 10  # not one token for ever
    assert sharing.tokens["first"] == want
    assert sharing.tokens["standby"] == want
    assert sharing.tokens["API server"] == want


def test_a_standby_has_none_of_the_weights_and_then_shares_them(sharing: Sharing) -> None:
    assert sharing.memory["standby before"].mapped == 0
    assert sharing.memory["first alone"].share == sharing.memory["first alone"].mapped > 0
    first, standby = sharing.memory["first"], sharing.memory["standby"]
    assert standby.mapped > 0
    # Every page is there once: it counts half for each.
    assert first.share + standby.share == pytest.approx(max(first.mapped, standby.mapped), rel=0.1)
    server = sharing.memory["API server"]
    assert server.mapped > 0
    assert server.share == pytest.approx(server.mapped / 3, rel=0.1)


def test_engines_go_on_when_another_one_and_the_hmm_are_killed(sharing: Sharing) -> None:
    """And the API server came to the second HMM."""
    want = sharing.tokens["disk, long"]
    assert sharing.tokens["standby, long"] == want
    assert sharing.tokens["API server, long"] == want


def test_a_standby_behind_an_api_server_is_told_by_vllms_own_rpc(sharing: Sharing) -> None:
    assert sharing.http["attached"] == sharing.http["again"] == {"results": [None]}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """As a worker does it, up to the point where it makes a model."""
    from vllm.engine.arg_utils import EngineArgs

    from placer.agent.vllm.weights.shared_weights import SharedWeightsLoader

    def load(hmm: Path, **options: Any) -> None:
        monkeypatch.setenv("PLACER_HMM", str(hmm))
        usual = {"model": str(MODEL), "dtype": "float32", "skip_tokenizer_init": True}
        config = EngineArgs(load_format="placer", **{**usual, **options}).create_engine_config()
        SharedWeightsLoader(config.load_config).load_model(config, config.model_config)

    return load


Load = Callable[..., None]


def test_an_hmm_that_is_not_there_is_named(load: Load, tmp_path: Path) -> None:
    nobody = tmp_path / "nobody.sock"
    with pytest.raises(PlacerError, match=f"no HMM at {nobody}.*placer hmm --socket {nobody}"):
        load(nobody)


def test_another_dtype_than_the_exported_is_refused_with_both_named(
    sharing: Sharing, load: Load
) -> None:
    with pytest.raises(PlacerError, match="wants dtype bfloat16, not float32: start another"):
        load(sharing.socket, dtype="bfloat16")


def test_another_model_is_refused_with_both_named(
    sharing: Sharing, load: Load, tmp_path: Path
) -> None:
    model = shutil.copytree(MODEL, tmp_path / "other")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_experts_per_tok": 1}))
    with pytest.raises(PlacerError, match=f"has weights of {MODEL}, and this engine of {model} "):
        load(sharing.socket, model=str(model))


def test_a_width_above_one_is_refused(sharing: Sharing, load: Load) -> None:
    with pytest.raises(PlacerError, match="tensor parallel size is 2: use 1, and an engine for"):
        load(sharing.socket, tensor_parallel_size=2)


def test_a_checkpoint_that_changed_on_disk_is_refused(
    sharing: Sharing, load: Load, tmp_path: Path
) -> None:
    model = shutil.copytree(MODEL, tmp_path / "changed")
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    shutil.copystat(MODEL / weights.name, weights)
    with pytest.raises(PlacerError, match=r"SHA-256 [0-9a-f]{12} in model.safetensors, and had"):
        load(sharing.socket, model=str(model))


@pytest.mark.parametrize("extra", [{"standby": "yes"}, {"standbye": True}])
def test_settings_that_cannot_be_are_refused(
    load: Load, extra: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(PlacerError, match="takes standby, which is true or false"):
        load(tmp_path, model_loader_extra_config=extra)
