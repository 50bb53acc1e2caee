"""Every kind of experts that vLLM lets anybody see is seen; the others are named, with a remedy."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")

import torch
from vllm.model_executor.layers.fused_moe.layer import MoERunner
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

from placer.agent.reporter import Reporter
from placer.agent.vllm import worker_agent
from placer.agent.vllm.experts import expert_layers, kinds
from placer.agent.vllm.shutter import EVERY_S, OPEN_S, Shutter
from placer.worker import Status, Worker

IDS = torch.tensor([[1, 2], [3, 0]], dtype=torch.int16)


class MegaMoE(torch.nn.Module):  # type: ignore[misc]
    """As DeepSeek-V4's and Kimi-K3's: the layer itself calls a function, if there is one."""

    def __init__(self, layer: int, experts: int = 4) -> None:
        super().__init__()
        self.layer_id, self.capture_fn = layer, None
        self.num_logical_experts, self.top_k, self.num_experts = experts, 2, 6


class Router(BaseRouter):  # type: ignore[misc]
    def __init__(self) -> None:
        self.capture_fn = None

    def _compute_routing(self, *_: Any, **__: Any) -> Any: ...

    @property
    def routing_method_type(self) -> Any: ...


class Runner(MoERunner):  # type: ignore[misc]
    """A layer whose kernel routes by itself, if it has one."""

    layer_id: int = 0
    _quant_method: Any = None

    def __init__(self, layer: int, kernel: Any = None) -> None:
        torch.nn.Module.__init__(self)
        self.layer_id = layer
        self.moe_config: Any = SimpleNamespace(
            num_logical_experts=4, experts_per_token=2, num_experts=6, is_sequence_parallel=False
        )
        self.router: Any = Router()
        self.routed_experts: Any = SimpleNamespace(routing_sink=None)
        impl = SimpleNamespace(fused_experts=kernel)
        self._quant_method = SimpleNamespace(
            is_monolithic=kernel is not None, moe_kernel=SimpleNamespace(impl=impl)
        )


class Kernel:
    """One that writes down what it chose, or not."""

    def __init__(self, tells: bool) -> None:
        self.supports_routing_replay_capture = lambda: tells
        self.moe_config = SimpleNamespace(
            use_ep=True,
            ep_size=2,
            dp_size=1,
            max_num_tokens=8,
            experts_per_token=2,
            device=torch.device("cpu"),
        )


def model(*layers: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.ModuleList(layers)


def chosen(layer: torch.nn.Module) -> None:
    """What vLLM does when the layer has routed IDS."""
    if isinstance(layer, MegaMoE):
        function: Any = layer.capture_fn
    elif isinstance(layer, Runner) and layer.routed_experts.routing_sink is not None:
        function = layer.routed_experts.routing_sink.capture_fn
    else:
        function = layer.router.capture_fn
    if function is not None:
        function(IDS)


@pytest.mark.parametrize(
    "layer",
    [MegaMoE(3), Runner(3), Runner(3, Kernel(tells=True))],
    ids=["mega", "router", "kernel"],
)
def test_choices_of_every_kind_are_handed_on_until_that_is_taken_away(
    layer: torch.nn.Module,
) -> None:
    (found,) = expert_layers(model(torch.nn.Linear(2, 2), layer))
    assert (found.id, found.experts, found.top_k, found.slots) == (3, 4, 2, 6)
    assert (found.unseen, found.is_taken) == ("", False)
    seen: list[torch.Tensor] = []
    found.bind(seen.append)
    chosen(layer)
    assert [ids.tolist() for ids in seen] == [IDS.tolist()]
    assert expert_layers(model(layer))[0].is_taken
    found.bind(None)
    chosen(layer)
    assert len(seen) == 1


def test_a_kernels_buffer_holds_the_tokens_of_all_ranks() -> None:
    layer = Runner(0, Kernel(tells=True))
    expert_layers(model(layer))[0].bind(lambda ids: None)
    assert layer.routed_experts.routing_sink.buffer.shape == (16, 2)


def test_layers_come_in_the_order_of_the_model() -> None:
    found = expert_layers(model(MegaMoE(5), Runner(1), MegaMoE(3)))
    assert [layer.id for layer in found] == [1, 3, 5]


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Runner(0, Kernel(tells=False)), "Kernel routes inside its kernel"),
        (MegaMoE(0, experts=0), "MegaMoE does not say how many experts"),
    ],
)
def test_what_cannot_be_seen_is_named_with_a_remedy(layer: torch.nn.Module, said: str) -> None:
    (found,) = expert_layers(model(layer))
    assert said in found.unseen
    assert "--moe-backend" in found.unseen


class OtherExperts(torch.nn.Module):  # type: ignore[misc]
    """Of a kind that nobody has seen yet."""


def test_a_model_of_an_unknown_kind_is_never_said_to_have_no_experts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "hidden_size": 8,
        "moe_intermediate_size": 8,
    }
    parallel = SimpleNamespace(
        data_parallel_rank=0,
        data_parallel_size=1,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        enable_expert_parallel=False,
        enable_elastic_ep=False,
        elastic_ep_max_dp_size=1,
    )
    model_config = SimpleNamespace(
        model="tiny", hf_config=SimpleNamespace(to_dict=lambda: dict(config))
    )
    runner = SimpleNamespace(
        model=model(OtherExperts()),
        eplb_state=None,
        device=torch.device("cpu"),
        vllm_config=SimpleNamespace(model_config=model_config, parallel_config=parallel),
    )
    monkeypatch.setattr(worker_agent, "get_tp_group", lambda: SimpleNamespace(rank_in_group=0))
    monkeypatch.setattr(Reporter, "start", lambda self: None)
    statuses: list[Status] = []
    sink = SimpleNamespace(report=statuses.append)
    workers: list[Worker] = []

    def open_sink(worker: Worker, shape: object) -> Any:
        workers.append(worker)
        return sink

    agent = worker_agent.start(runner, open_sink, "always")
    assert agent is not None
    agent.reporter._round()
    (worker,), (status, *_) = workers, statuses
    assert (worker.layers, worker.experts, worker.top_k, worker.records) == (2, 4, 2, False)
    assert "4 experts in 2 layers" in status.condition
    assert "OtherExperts" in status.condition
    assert "--moe-backend" in status.condition


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("server", ["", "http://host:8000"])
def test_a_width_changes_where_elastic_ep_is_on_and_its_server_is_known(
    monkeypatch: pytest.MonkeyPatch, elastic: bool, server: str
) -> None:
    monkeypatch.setenv("PLACER_API", server)
    parallel = SimpleNamespace(
        data_parallel_rank=1,
        data_parallel_size=2,
        tensor_parallel_size=2,
        enable_expert_parallel=False,
        enable_elastic_ep=elastic,
        elastic_ep_max_dp_size=8,
    )
    config = SimpleNamespace(parallel_config=parallel, model_config=SimpleNamespace(model="tiny"))
    worker = worker_agent._worker(config, (2, 4, 2, 4), 1, can_apply=True, records=False)
    assert worker.name == "worker-3"
    assert worker.can_resize == (elastic and bool(server))
    assert (worker.tp_size, worker.most_ranks) == (2, 16)


def test_kinds_are_classes_that_look_like_experts() -> None:
    assert kinds(model(OtherExperts(), torch.nn.Linear(2, 2))) == ["OtherExperts"]


def test_a_shutter_is_open_for_a_tenth_of_the_time_and_sees_whole_steps_alone() -> None:
    layers = MegaMoE(0), MegaMoE(1)
    seen: list[int] = []
    captures = [lambda ids, at=at: seen.append(at) for at in range(2)]
    shutter = Shutter(expert_layers(model(*layers)), captures)

    def step(now_s: float, of: tuple[MegaMoE, ...] = layers) -> bool:
        for layer in of:
            chosen(layer)
        return shutter.after_step(now_s)

    assert not step(100)  # closed, and then open
    assert step(100 + OPEN_S / 2)
    assert not step(100 + OPEN_S / 2, of=layers[:1])  # the other replays a graph
    assert step(100 + OPEN_S)  # the last that is seen
    assert seen == [0, 1, 0, 0, 1]
    assert not step(100 + OPEN_S + 1)
    assert not step(100 + EVERY_S)
    assert step(100 + EVERY_S + OPEN_S / 2)
    assert layers[0].capture_fn is not None
