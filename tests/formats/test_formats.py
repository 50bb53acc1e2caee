"""Each format against the layout that its project documents, and there and back again."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from placer.errors import FileError, PlacerError
from placer.formats import FORMATS, dump, parse
from placer.problem import Problem
from tests.builders import a_placement, worlds

# Six physical experts of four logical ones on three GPUs, two layers: the example in the
# docstring of vLLM's EplbState.
ROWS = [[0, 1, 2, 3, 0, 1], [0, 2, 0, 1, 0, 3]]
PLACEMENT = a_placement(ROWS, gpus=3)


def test_vllm_is_the_physical_to_logical_map() -> None:
    assert json.loads(dump("vllm", PLACEMENT, 0)) == ROWS


def test_sglang_has_a_row_for_every_layer_of_the_model() -> None:
    data = json.loads(dump("sglang", PLACEMENT, 1))
    assert data == {"physical_to_logical_map": [[0, 1, 2, 3, 0, 1], *ROWS]}
    assert parse("sglang", json.dumps(data), 1).rows == ROWS


def test_trtllm_names_the_models_layers_and_keeps_them_as_they_are() -> None:
    text = dump("trtllm", PLACEMENT, 3)
    assert yaml.safe_load(text) == {
        "initial_global_assignments": {3: ROWS[0], 4: ROWS[1]},
        "num_slots": 6,
        "layer_updates_per_iter": 0,
    }
    assert "  3: [0, 1, 2, 3, 0, 1]\n" in text  # a line a layer, as in its own examples


def test_vllm_ascend_lists_the_experts_of_each_device() -> None:
    data = json.loads(dump("vllm-ascend", PLACEMENT, 3))
    assert data["moe_layer_count"] == 2
    assert data["layer_list"][1] == {
        "layer_id": 1,
        "device_count": 3,
        "device_list": [
            {"device_id": 0, "device_expert": [0, 2]},
            {"device_id": 1, "device_expert": [0, 1]},
            {"device_id": 2, "device_expert": [0, 3]},
        ],
    }


@given(worlds(), st.sampled_from(sorted(FORMATS)), st.integers(0, 3))
def test_there_and_back_again(problem: Problem, name: str, first_moe_layer: int) -> None:
    rows = problem.linear.physical_to_logical.tolist()
    found = parse(name, dump(name, problem.linear, first_moe_layer), first_moe_layer)
    assert found.rows == rows
    assert found.gpus in (None, problem.topology.gpus)


@pytest.mark.parametrize("name", FORMATS)
def test_empty_slots_are_refused_with_what_would_do(name: str) -> None:
    holed = a_placement([[0, 1, 2, 3, -1, -1]])
    with pytest.raises(FileError, match=f"{name} wants .* leaves 2 empty: plan without --uneven"):
        dump(name, holed, 0)


def test_vllms_own_map_may_have_empty_slots() -> None:
    assert parse("vllm", "[[0, 1, 2, 3, -1, -1]]", 0).rows == [[0, 1, 2, 3, -1, -1]]


ASCEND = dump("vllm-ascend", PLACEMENT, 0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vllm", "[[0, 1], [0.5, 1]]", "the file is not a list of layers of expert ids"),
        ("vllm", "[]", "the file is not a list of layers"),
        ("vllm", "{", "not JSON"),
        ("sglang", '{"logical_count": [[1]]}', "a recording of expert loads"),
        ("sglang", "[[0]]", "no physical_to_logical_map in the file"),
        ("trtllm", "num_slots: 4", "no initial_global_assignments by layer number"),
        ("trtllm", "initial_global_assignments: {3: [0], 5: [0]}", "skips layers between 3 and 5"),
        ("trtllm", "{initial_global_assignments: {3: [0]}, num_slots: 2}", "num_slots is 2"),
        ("trtllm", "{", "not YAML"),
        ("vllm-ascend", "{}", "moe_layer_count: field required"),
        (
            "vllm-ascend",
            ASCEND.replace('"moe_layer_count": 2', '"moe_layer_count": 3'),
            "layer_ids",
        ),
        ("vllm-ascend", ASCEND.replace('"device_count": 3', '"device_count": 4'), "device_ids"),
        ("vllm-ascend", ASCEND.replace("[0, 2]", "[0, 2, 1]"), "different numbers of slots"),
        ("tensorrt", "", "unknown format 'tensorrt': did you mean 'trtllm'"),
    ],
)
def test_what_is_wrong_is_named(name: str, text: str, message: str) -> None:
    with pytest.raises(PlacerError, match=message):
        parse(name, text, 0)


def test_too_few_layers_for_the_model_are_named() -> None:
    with pytest.raises(FileError, match="has 2 layers and the model's experts begin at layer 3"):
        parse("sglang", json.dumps({"physical_to_logical_map": ROWS}), 3)
