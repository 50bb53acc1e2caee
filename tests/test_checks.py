from dataclasses import replace

import pytest

from placer import model
from placer.checks import violations
from placer.objective import Objective
from tests.builders import a_model, a_placement, a_topology

GOOD = a_placement([[0, 1, 2, 3], [3, 1, 2, 0]])


def test_a_good_placement_passes() -> None:
    assert violations(GOOD, Objective(), a_model(), a_topology()) == []


def test_a_missing_expert_is_found() -> None:
    bad = a_placement([[0, 1, 2, 3], [0, 1, 2, 2]])
    assert violations(bad, Objective(allow_duplicates=True)) == [
        "layer 1: no slot holds expert 3: tokens would be lost"
    ]


def test_an_expert_twice_on_a_gpu_is_found_unless_allowed() -> None:
    bad = a_placement([[0, 1, 1, 2, 3, 0]])
    assert violations(bad, Objective()) == [
        "layer 0: GPU 0 holds expert 1 2 times: a second copy on a GPU serves nothing"
    ]
    assert violations(bad, Objective(allow_duplicates=True)) == []


def test_replicas_on_two_gpus_are_no_duplicates() -> None:
    assert violations(a_placement([[0, 1, 2, 0, 1, 3]]), Objective()) == []


def test_another_models_plan_is_found() -> None:
    found = violations(GOOD, Objective(), a_model(layers=3))
    assert found == [
        "the placement has 2 layers x 4 experts but tiny has 3 x 4: this is another model's plan"
    ]


def test_a_plan_for_other_gpus_is_found() -> None:
    (found,) = violations(GOOD, Objective(), a_model(), a_topology(4))
    assert "is for 2 GPUs in 1 nodes but h100 has 4 in 1" in found


def test_too_much_for_a_gpus_memory_is_found() -> None:
    big = replace(a_model(), hidden=2**20, moe_intermediate=2**12)  # 25.8 GB an expert
    (first, second) = violations(GOOD, Objective(), big, a_topology())
    assert first == (
        "GPU 0 needs 103.1 GB of weights but may use 72.0 GB: use fewer slots or more GPUs"
    )
    assert second.startswith("GPU 1")


def test_a_group_spread_over_nodes_is_found_where_groups_must_stay() -> None:
    grouped = a_model(layers=1, groups=2)
    split = a_placement([[0, 2, 1, 3]], nodes=2)
    kept = a_placement([[2, 3, 1, 0]], nodes=2)
    rule = Objective(keep_groups=True)
    assert violations(split, Objective(), grouped) == []
    assert violations(kept, rule, grouped) == []
    assert violations(split, rule, grouped)[0] == (
        "layer 0: group 0 is spread over nodes [0, 1]: its experts must stay on one node"
    )


@pytest.mark.parametrize("name", model.PRESETS)
def test_every_preset_checks_against_itself(name: str) -> None:
    shape = model.preset(name)
    placement = a_placement([list(range(shape.experts))] * shape.layers, shape.experts, gpus=8)
    assert all("GB" in fault for fault in violations(placement, Objective(), shape, a_topology(8)))
