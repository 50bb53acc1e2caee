"""Each format against the layout that its project documents, and there and back again."""

import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from placer.errors import FileError, PlacerError
from placer.formats import FORMATS, dump, parse
from placer.model import ModelShape
from placer.problem import Problem
from tests.builders import a_model, a_placement, worlds

# Six physical experts of four logical ones on three GPUs, two layers: the example in the
# docstring of vLLM's EplbState.
ROWS = [[0, 1, 2, 3, 0, 1], [0, 2, 0, 1, 0, 3]]
PLACEMENT = a_placement(ROWS, gpus=3)


def having(*moe_layers: int, of: int = 0) -> ModelShape:
    """A model of four experts in these layers of so many."""
    return a_model(layers=len(moe_layers), moe_layers=moe_layers, hidden_layers=of)


DEEP = having(3, 4)
SECOND = having(1, 3, of=5)


def test_vllm_is_the_physical_to_logical_map() -> None:
    assert json.loads(dump("vllm", PLACEMENT, None)) == ROWS


def test_sglang_has_a_row_for_every_layer_of_the_model() -> None:
    data = json.loads(dump("sglang", PLACEMENT, SECOND))
    trivial = [0, 1, 2, 3, 0, 1]
    assert data == {"physical_to_logical_map": [trivial, ROWS[0], trivial, ROWS[1], trivial]}
    assert parse("sglang", json.dumps(data), SECOND).rows == ROWS


def test_trtllm_names_the_models_layers_and_keeps_them_as_they_are() -> None:
    text = dump("trtllm", PLACEMENT, DEEP)
    assert yaml.safe_load(text) == {
        "initial_global_assignments": {3: ROWS[0], 4: ROWS[1]},
        "num_slots": 6,
        "layer_updates_per_iter": 0,
    }
    assert "  3: [0, 1, 2, 3, 0, 1]\n" in text  # a line a layer, as in its own examples


def test_vllm_ascend_lists_the_experts_of_each_device() -> None:
    data = json.loads(dump("vllm-ascend", PLACEMENT, DEEP))
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


def test_trtllm_may_have_experts_in_every_second_layer() -> None:
    text = dump("trtllm", PLACEMENT, SECOND)
    assert list(yaml.safe_load(text)["initial_global_assignments"]) == [1, 3]
    assert parse("trtllm", text, SECOND).rows == ROWS
    assert parse("trtllm", text, None).rows == ROWS


@pytest.mark.parametrize(
    "text",
    [
        '{"num_slots": 2, "initial_global_assignments": {"1": [0, 1], "3": [1, 0]}}',
        "moe_config: {load_balancer: {initial_global_assignments: {1: [0, 1], 3: [1, 0]}}}",
    ],
)
def test_trtllm_takes_layers_as_text_and_all_options_in_one_file(text: str) -> None:
    assert parse("trtllm", text, None).rows == [[0, 1], [1, 0]]


@given(
    worlds(),
    st.sampled_from(sorted(FORMATS)),
    st.sets(st.integers(0, 9), min_size=3, max_size=3),
    st.integers(0, 2),
)
def test_there_and_back_again(problem: Problem, name: str, where: set[int], after: int) -> None:
    rows = problem.linear.physical_to_logical.tolist()
    layers = sorted(where)[: problem.model.layers]
    total = layers[-1] + 1 + after
    model = replace(problem.model, moe_layers=tuple(layers), hidden_layers=total)
    found = parse(name, dump(name, problem.linear, model), model)
    assert found.rows == rows
    assert found.gpus in (None, problem.topology.gpus)


@pytest.mark.parametrize("name", FORMATS)
def test_empty_slots_are_refused_with_what_would_do(name: str) -> None:
    holed = a_placement([[0, 1, 2, 3, -1, -1]])
    with pytest.raises(FileError, match=f"{name} wants .* leaves 2 empty: plan without --uneven"):
        dump(name, holed, None)


def test_vllms_own_map_may_have_empty_slots() -> None:
    assert parse("vllm", "[[0, 1, 2, 3, -1, -1]]", None).rows == [[0, 1, 2, 3, -1, -1]]


def test_vllm_maps_come_as_objects_and_by_model() -> None:
    row = [[0, 1, 2, 3, 0, 1]]
    assert parse("vllm", json.dumps({"physical_to_logical_map": row}), None).rows == row
    several = {
        "format": "vllm_offline_eplb_physical_to_logical_by_model",
        "version": 2,
        "num_logical_experts": 4,
        "model_maps": {"Big": {"physical_to_logical_map": row}, "Mtp": row},
    }
    text = json.dumps(several)
    with pytest.raises(FileError, match="it has maps of 'Big', 'Mtp': say which, with --map"):
        parse("vllm", text, None)
    with pytest.raises(FileError, match="no map of 'Small'"):
        parse("vllm", text, None, "Small")
    for name in ("Big", "Mtp"):
        found = parse("vllm", text, None, name)
        assert (found.rows, found.experts) == (row, 4)
    with pytest.raises(FileError, match="a sglang file has one map alone"):
        parse("sglang", text, None, "Big")


def test_the_only_map_of_a_vllm_file_needs_no_name() -> None:
    file = {"version": 1, "num_logical_experts": 5, "model_maps": {"Big": ROWS}}
    found = parse("vllm", json.dumps(file), None)
    assert (found.rows, found.experts) == (ROWS, 5)
    with pytest.raises(FileError, match="version 3: placer reads 1 and 2"):
        parse("vllm", json.dumps(file | {"version": 3}), None)


def test_vllm_ascend_is_taken_in_the_order_of_the_file() -> None:
    devices = [{"device_id": 1, "device_expert": [2, 3]}, {"device_expert": [0, 1]}]
    found = parse("vllm-ascend", json.dumps({"layer_list": [{"device_list": devices}]}), None)
    assert (found.rows, found.gpus) == ([[2, 3, 0, 1]], 2)
    assert found.notes == (
        "the device_ids do not count up from 0: taken by their order in the file, as the engine "
        "does",
    )


ASCEND = dump("vllm-ascend", PLACEMENT, None)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vllm", "[[0, 1], [0.5, 1]]", "the file is not a list of layers of expert ids"),
        ("vllm", "[]", "the file is not a list of layers"),
        ("vllm", "{", "not JSON"),
        ("sglang", '{"logical_count": [[1]]}', "a recording of expert loads"),
        ("sglang", "[[0]]", "no physical_to_logical_map in the file"),
        ("trtllm", "num_slots: 4", "no placement in it .4 num_slots.*: TensorRT-LLM starts from"),
        ("trtllm", "{initial_global_assignments: {3: [0]}, num_slots: 2}", "num_slots is 2"),
        (
            "trtllm",
            "{initial_global_assignments: {-1: [0]}}",
            "no initial_global_assignments by la",
        ),
        ("trtllm", "{initial_global_assignments: {1: [0], '1': [0]}}", "a (layer|key) .*twice"),
        ("trtllm", "{", "not YAML"),
        ("vllm-ascend", "{}", "layer_list: field required"),
        (
            "vllm-ascend",
            ASCEND.replace('"moe_layer_count": 2', '"moe_layer_count": 3'),
            "moe_layer_count is 3 but layer_list has 2",
        ),
        (
            "vllm-ascend",
            ASCEND.replace('"device_count": 3', '"device_count": 4'),
            "device_count is 4 but device_list has 3",
        ),
        ("vllm-ascend", ASCEND.replace("[0, 2]", "[0, 2, 1]"), "different numbers of slots"),
        ("tensorrt", "", "unknown format 'tensorrt': did you mean 'trtllm'"),
    ],
)
def test_what_is_wrong_is_named(name: str, text: str, message: str) -> None:
    with pytest.raises(PlacerError, match=message):
        parse(name, text, None)


@pytest.mark.parametrize(
    ("name", "text", "layers"),
    [
        ("sglang", json.dumps({"physical_to_logical_map": ROWS}), "0, 1"),
        ("trtllm", dump("trtllm", PLACEMENT, None), "0, 1"),
        ("trtllm", dump("trtllm", PLACEMENT, SECOND), "1, 3"),
        ("vllm", json.dumps([*ROWS, ROWS[0]]), "0-2"),
    ],
)
def test_a_file_of_other_layers_is_refused_with_both_lists(
    name: str, text: str, layers: str
) -> None:
    said = f"the file has layers {layers} but tiny has 5, with experts in 3, 4: is it the right"
    with pytest.raises(FileError, match=said):
        parse(name, text, having(3, 4))
