"""Groups of GPUs that each hold all experts."""

from dataclasses import replace
from pathlib import Path

import pytest

from placer import topology
from placer.checks import violations
from placer.cost import score
from placer.files.routing import read_trace
from placer.model import ModelShape
from placer.objective import STEP_TOKENS_PER_GPU, Dispatch, Objective
from placer.optimizers import optimizer
from placer.optimizers.joint.start import group
from placer.problem import Problem
from placer.trace import concatenate
from tests.builders import a_problem, a_trace

EXAMPLE = sorted((Path(__file__).parents[2] / "examples/tiny_moe/traces").glob("*.npz"))


def world(slots: int, gpus: int, nodes: int = 1, objective: Objective | None = None) -> Problem:
    """4 experts of which tokens use 0 with 1, and 2 with 3."""
    trace = a_trace([[[0, 1]], [[2, 3]]] * 50)
    return a_problem(trace, slots, gpus, nodes, objective or Objective("dedup"))


@pytest.mark.parametrize(
    ("slots", "gpus", "nodes", "expected"),
    [
        (8, 4, 1, (2, 1)),  # two halves of the node
        (8, 4, 2, (2, 1)),  # both nodes
        (16, 8, 4, (2, 1)),  # four nodes
        (8, 8, 4, (4, 2)),  # two pairs of nodes
        (16, 8, 2, (2, 1)),  # two pairs in each node
        (12, 4, 1, (2, 1)),  # three groups would not be of as many GPUs
        (6, 2, 2, None),  # room for one and a half
    ],
)
def test_a_group_is_as_small_as_there_is_room_for(
    slots: int, gpus: int, nodes: int, expected: tuple[int, int] | None
) -> None:
    part = group(world(slots, gpus, nodes))
    found = part and (part.topology.gpus, part.topology.nodes)
    assert found == expected
    assert part is None or part.slots * gpus == slots * part.topology.gpus


def test_where_it_saves_nothing_or_is_not_allowed_there_is_none() -> None:
    assert group(world(8, 4, objective=Objective("allgather"))) is None
    assert group(world(8, 4, 2, Objective("dedup", keep_groups=True))) is None


@pytest.mark.parametrize("dispatch", ["dedup", "coherent"])
def test_a_token_that_is_in_a_group_visits_one_gpu_besides_its_own(dispatch: Dispatch) -> None:
    # Either half of the GPUs holds 0 and 1, and 2 and 3: no other map needs fewer visits.
    problem = world(8, 4, objective=Objective(dispatch))
    found = optimizer("joint")(problem).placement
    held = sorted(sorted(gpu) for gpu in found.physical_to_logical.reshape(4, 2).tolist())
    assert held == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_groups_keep_experts_on_two_nodes() -> None:
    problem = world(8, 4, 2, Objective("dedup", survive_node=True))
    found = optimizer("joint")(problem).placement
    assert violations(found, problem.objective, problem.model, problem.topology) == []


def test_where_experts_have_a_second_replica_groups_are_found() -> None:
    # Exchanges alone end 2.8% slower than eplb: most nodes are visited for few experts.
    model = ModelShape("tiny_moe", 6, 16, 2, 128, 64)
    trace = concatenate([read_trace(path, model) for path in EXAMPLE])
    objective = Objective("dedup", tokens_per_gpu=STEP_TOKENS_PER_GPU["decode"])
    problem = a_problem(trace, gpus=16, nodes=2, slots=48, objective=objective)
    hardware = topology.preset("pcie-l40s").resized(16, 2)
    problem = replace(problem, model=model, topology=hardware)
    steps = {
        name: score(problem, optimizer(name)(problem).placement, trace).step_s
        for name in ("joint", "eplb", "linear")
    }
    assert steps["joint"] < 0.98 * min(steps["eplb"], steps["linear"])
