import math
from dataclasses import replace

import numpy as np
import pytest

from placer import model, topology
from placer.errors import ModelError, PlacementError, TopologyError
from placer.model import matching
from placer.objective import Effort, Objective
from placer.placement import Placement


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        # Published parameter counts, experts and the rest together.
        ("mixtral-8x7b", 46.7),
        ("deepseek-v2-lite", 15.7),
        ("deepseek-v3", 671),
        ("qwen3-30b-a3b", 30.5),
        ("qwen3-235b-a22b", 235),
        ("gpt-oss-20b", 20.9),
        ("gpt-oss-120b", 116.8),
        ("olmoe-1b-7b", 6.9),
        ("kimi-k2", 1026),
    ],
)
def test_presets_add_up_to_the_published_size(name: str, billions: float) -> None:
    shape = model.preset(name)
    experts = shape.layers * shape.experts * 3 * shape.hidden * shape.moe_intermediate
    # What is not quantised is in 8 bits where the experts are, in 16 otherwise.
    rest = shape.other_bytes / (1 if shape.weight_bits == 8 else 2)
    assert (experts + rest) / 1e9 == pytest.approx(billions, rel=0.01)


def test_an_expert_of_mixtral_has_three_projections_of_two_bytes_a_weight() -> None:
    assert model.preset("Mixtral-8x7B").expert_bytes == 3 * 4096 * 14336 * 2


def test_a_recording_names_its_model_only_if_one_preset_fits() -> None:
    found = matching(layers=26, top_k=6, experts_seen=63)
    assert found is not None
    assert found.name == "deepseek-v2-lite"
    assert matching(layers=58, top_k=8, experts_seen=256) is not None  # V3 and R1 are one shape
    assert matching(layers=26, top_k=6, experts_seen=65) is None


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ModelError, match="unknown model 'deepseek-v4': did you mean 'deepseek-v3'"):
        model.preset("deepseek-v4")
    with pytest.raises(TopologyError, match="unknown topology 'h10': did you mean 'h100'"):
        topology.preset("h10")


def test_a_model_must_make_sense() -> None:
    with pytest.raises(ModelError, match="top_k 9 exceeds its 8 experts"):
        replace(model.preset("mixtral-8x7b"), top_k=9)
    with pytest.raises(ModelError, match="8 experts do not divide into 3 groups"):
        replace(model.preset("mixtral-8x7b"), groups=3)
    with pytest.raises(ModelError, match="layers is 0"):
        replace(model.preset("mixtral-8x7b"), layers=0)


def test_a_topology_grows_by_whole_nodes() -> None:
    node = topology.preset("h100")
    assert node.resized(32).nodes == 4
    assert node.resized(4).nodes == 1
    assert node.resized(12, nodes=2).gpus_per_node == 6
    with pytest.raises(TopologyError, match="12 GPUs do not fill nodes of 8"):
        node.resized(12)
    with pytest.raises(TopologyError, match="7 GPUs do not divide into 2 equal nodes"):
        node.resized(7, nodes=2)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 1e300])
def test_hardware_that_nobody_has_is_refused_where_it_is_made(value: float) -> None:
    node = topology.preset("h100")
    with pytest.raises(
        TopologyError, match=r"a GPU: hbm_bytes_per_s is .*: it must be 1 to 1e\+30"
    ):
        replace(node.gpu, hbm_bytes_per_s=value)
    with pytest.raises(TopologyError, match="a link: bytes_per_s is"):
        replace(node.local, bytes_per_s=value)
    with pytest.raises(TopologyError, match="topology h100: gpus is"):
        replace(node, gpus=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("tokens_per_gpu", [0, -1, 10**12, math.nan]),
        ("efficiency", [0, -0.5, 1.1, math.nan]),
        ("memory_share", [0, 1.1, math.inf]),
        ("horizon_s", [-1, math.nan, math.inf]),
        ("overlap", [-0.1, 1.1, math.nan]),
        ("guard", [-0.1, 1.1, math.nan]),
        ("max_moved", [-0.1, 1.1, math.nan]),
    ],
)
def test_objectives_that_nobody_means_are_refused(field: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(PlacementError, match=f"objective: {field} is .*: it must be"):
            replace(Objective(), **{field: value})  # type: ignore[arg-type]
    for effort in ({"gap": math.nan}, {"time_limit_s": math.inf}, {"iterations": -1}):
        with pytest.raises(PlacementError, match=r"effort: .*: it must be"):
            replace(Effort(), **effort)


def test_a_placement_as_large_as_none_is_refused_before_its_copies_are_counted() -> None:
    slots = np.zeros((1, 4), dtype=np.int32)
    with pytest.raises(
        PlacementError, match="1 layers x 1000000000000 experts on 2 GPUs are beyond"
    ):
        Placement(slots, 10**12, 2)
    with pytest.raises(PlacementError, match="are beyond 4096 layers, 4096 experts, or 67108864"):
        Placement(np.zeros((64, 4096), dtype=np.int32), 4096, 4096)


def test_the_smallest_expert_has_a_byte() -> None:
    smallest = model.ModelShape("tiny", 1, 2, 1, hidden=1, moe_intermediate=1, weight_bits=1)
    assert smallest.expert_bytes == 1  # 3 bits
