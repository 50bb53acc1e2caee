"""What the controller advises can be followed where its operator is: in settings."""

from typing import Any

import pytest

from controller.config import Config, in_settings
from controller.engines.planning import answer
from controller.fleet.windows import Window
from placer.errors import PlacerError
from placer.plan import Plan
from placer.problem import Problem
from tests.builders import a_model
from tests.controller.tiny_pool import (
    POOL,
    SKEWED,
    World,
    a_delta,
    a_policy,
    decided,
    in_virtual_time,
)


def advice(optimizer: str = "eplb", slots: int = 4, **policy: Any) -> str:
    """On a pool of two ranks."""
    window = Window(10.0, 0.0)
    window.add(a_delta(SKEWED), 1.0)
    profile = window.profile("decode", 1, 1.0)
    assert profile is not None
    asked = a_policy(**policy)
    problem = Problem(a_model(), asked.hardware(2), profile, slots, asked.objective)
    try:
        found = answer(problem, optimizer)
    except PlacerError as error:
        return str(error)
    return "; ".join([found.reason, *found.notes] if isinstance(found, Plan) else [found.reason])


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"survive_node": True}, "surviving a node clashes with having one: use nodes 2 or more"),
        (
            {"survive_node": True, "nodes": 2},
            "every expert on two nodes clashes with 4 slots: set the engine's "
            "num_redundant_experts to 4 or more",
        ),
        (
            {"slots": 10},
            "5 slots a GPU clash with 4 experts and no expert twice on a GPU: set the engine's "
            "num_redundant_experts to 4 or less",
        ),
        (
            {"optimizer": "moetuner"},
            "moetuner needs transitions and this profile of 1000 tokens has loads alone: use a "
            "dispatch other than allgather, or optimizer eplb",
        ),
    ],
)
def test_reasons_name_settings(asked: dict[str, Any], told: str) -> None:
    assert advice(**asked) == told


def test_hardware_that_does_not_fit_names_settings() -> None:
    with pytest.raises(PlacerError, match="give nodes as well, or a topology file with nodes of"):
        Config(a_policy()).default.hardware(3)


@in_virtual_time
async def test_what_keeps_a_plan_from_paying_is_a_setting() -> None:
    world = World(mode="automatic", confirmations=1, optimizer="joint", max_moved=0.0)
    world.count(SKEWED)
    await world.tick()
    assert decided(world)[1].startswith("no expert would move: nothing moves with max_moved 0; ")


@in_virtual_time
async def test_a_setting_that_contradicts_what_stands_is_named() -> None:
    world = World(nodes=2)  # its engines stand in one
    world.count(SKEWED)
    await world.tick()
    assert world.loop.conditions[POOL].endswith(
        "give the same GPUs, nodes and num_redundant_experts"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("needs --max-moved 0.3 or more, or --allow-duplicates", "needs max_moved 0.3 or more"),
        ("needs --max-moved 0.3 or more, or leave out --survive-node",
         "needs max_moved 0.3 or more, or leave out survive_node"),
        ("if others may come, --guard 0.20 plans for them", "if others may come, guard 0.20 plans"
         " for them"),
        ("plan without --uneven, or with --optimizer joint, which fills redundant slots",
         "use optimizer joint, which fills redundant slots"),
        ("start it with --enable-eplb", "start it with --enable-eplb"),
    ],
)  # fmt: skip
def test_options_that_are_settings_are_told_as_those(text: str, told: str) -> None:
    assert in_settings(text) == told
