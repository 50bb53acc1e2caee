import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from placer.errors import FileError, PlacerError
from placer.files.plans import read_plan, write_plan
from placer.objective import Objective
from placer.plan import Homes, Input, Plan, Provenance, Solution
from placer.planner import make_plan, solve
from tests.builders import a_placement, a_problem, random_trace


def a_plan() -> Plan:
    trace = random_trace(0)
    problem = a_problem(trace, slots=6, objective=Objective(guard=0.5))
    solution = solve(problem, "eplb")
    assert isinstance(solution, Solution)
    inputs = (Input("t.npz", "00ff", 40),)
    provenance = Provenance("eplb", {"seed": 0, "holdout": None}, inputs, "2026-01-02T03:04:05")
    plan = make_plan(problem, solution, provenance, trace, trace)
    assert isinstance(plan, Plan)
    homes = Homes("sha256:00", (((1, 0.75), (0, 0.25)), ((0, 1.0),)), (3.0, 1.0), "sha256:01")
    return replace(plan, notes=("a note",), homes=homes)


def test_a_plan_comes_back_as_it_was(tmp_path: Path) -> None:
    plan = a_plan()
    write_plan(tmp_path / "p.json", plan)
    found = read_plan(tmp_path / "p.json")
    assert found.placement.digest == plan.placement.digest
    for name in Plan.__dataclass_fields__:
        if name != "placement":
            assert getattr(found, name) == getattr(plan, name), name


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_plan(tmp_path / "a.json", a_plan())
    write_plan(tmp_path / "b.json", read_plan(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_a_person_reads_one_line_a_layer_and_one_a_move(tmp_path: Path) -> None:
    write_plan(tmp_path / "p.json", replace(a_plan(), homes=None))
    lines = (tmp_path / "p.json").read_text().splitlines()
    rows = [json.loads(line.strip().rstrip(",")) for line in lines if line.startswith("   [")]
    assert rows == a_plan().placement.physical_to_logical.tolist()
    assert sum('"reason": ' in line and '"slot"' in line for line in lines) == len(a_plan().moves)


def minimal(**changes: object) -> dict[str, object]:
    placement = {"gpus": 2, "nodes": 1, "physical_to_logical": [[0, 1, 2, 3]]}
    return {"format": "placer.plan", "version": 1, "placement": placement, **changes}


def test_a_plan_of_an_earlier_version_is_read_as_it_was_meant(tmp_path: Path) -> None:
    sizes = {"layers": 1, "experts": 4, "top_k": 1, "hidden": 8, "moe_intermediate": 4}
    model = {"name": "old", **sizes, "activation_bits": 8}
    (tmp_path / "p.json").write_text(json.dumps(minimal(model=model)))
    found = read_plan(tmp_path / "p.json").model
    assert found is not None
    assert (found.dispatch_bits, found.combine_bits) == (8, 8)


def test_a_plan_without_homes_sends_requests_to_the_least_loaded(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(json.dumps(minimal()))
    assert read_plan(tmp_path / "old.json").homes is None


def test_a_map_alone_is_a_plan(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(minimal()))
    plan = read_plan(tmp_path / "p.json")
    assert plan.placement.digest == a_placement([[0, 1, 2, 3]]).digest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, 'is not a plan \\(no "format": "placer.plan"\\)'),
        (minimal(version=2), "version 2 of placer.plan, this placer reads 1: upgrade"),
        (minimal(digest="sha256:00"), "its digest is .* the map was changed"),
        (minimal(placement={"gpus": 2}), "placement.physical_to_logical: field required"),
        (
            minimal(placement={"gpus": 2, "physical_to_logical": [[0, 1], [0]]}),
            "the layers of the map differ in length",
        ),
        (
            minimal(placement={"gpus": 2, "physical_to_logical": [[0, 10**12]]}),
            "an expert id is out of all range",
        ),
        (minimal(placement={"gpus": 3, "physical_to_logical": [[0, 1]]}), "do not divide by 3"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, data: object, message: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(data))
    with pytest.raises(PlacerError, match=message):
        read_plan(tmp_path / "p.json")


def test_an_edited_map_no_longer_has_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    write_plan(path, a_plan())
    data = json.loads(path.read_text())
    row = data["placement"]["physical_to_logical"][0]
    row[0], row[-1] = row[-1], row[0]
    path.write_text(json.dumps(data))
    with pytest.raises(FileError, match="the map was changed"):
        read_plan(path)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    change=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ),
    key=st.sampled_from(["placement", "model", "score", "moves", "version"]),
)
def test_any_json_ends_in_a_plan_or_one_error(tmp_path: Path, change: object, key: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(minimal(**{key: change})))
    try:
        read_plan(tmp_path / "p.json")
    except PlacerError as error:
        assert "\n" not in str(error)  # noqa: PT017
