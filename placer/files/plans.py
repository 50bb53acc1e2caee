"""Plan files: JSON that a person can read and a program can trust; docs/files.md describes them."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, ValidationError

from placer.cost import Score
from placer.cost.moves import MoveCost
from placer.errors import FileError, PlacerError
from placer.files.atomic import read_text, write_text
from placer.files.documents import of_json
from placer.files.faults import first_fault
from placer.files.specs import shape_of
from placer.model import ModelShape
from placer.objective import Objective
from placer.placement import Placement
from placer.plan import Comparison, Homes, Move, Plan, Provenance, Reach
from placer.topology import Topology

FORMAT = "placer.plan"
VERSION = 1
LIMIT = 2**24  # bytes: five times the largest plan of today; as objects it takes half a GB


class PlacementSpec(BaseModel):
    gpus: int
    nodes: int = 1
    experts: int | None = None
    physical_to_logical: Annotated[list[Annotated[list[int], FailFast()]], FailFast()]


class ScoreSpec(BaseModel):
    before: Score | None = None
    after: Score | None = None
    holdout: Comparison | None = None
    guarded: Comparison | None = None


class PlanFile(BaseModel):
    """The file's layout. Only format, version and placement must be there."""

    model_config = ConfigDict(protected_namespaces=())

    format: Literal["placer.plan"] = "placer.plan"
    version: int = VERSION
    digest: str | None = None
    reason: str = ""
    mends: tuple[str, ...] = ()
    placement: PlacementSpec
    model: Annotated[ModelShape, BeforeValidator(shape_of)] | None = None
    topology: Topology | None = None
    objective: Objective = Objective()
    provenance: Provenance | None = None
    score: ScoreSpec = ScoreSpec()
    bound_s: float | None = None
    frontier: Annotated[tuple[Reach, ...], FailFast()] = ()
    whole_step_s: float | None = None
    notes: Annotated[tuple[str, ...], FailFast()] = ()
    move_cost: MoveCost | None = None
    moves: Annotated[tuple[Move, ...], FailFast()] = ()
    homes: Homes | None = None


def read_plan(path: Path) -> Plan:
    """The plan at ``path``. Raises FileError if it is none."""
    return parse_plan(read_text(path, LIMIT), str(path))


def parse_plan(text: str, name: str) -> Plan:
    """The plan in a text, which errors call ``name``.

    Raises FileError if it is no plan, or if its map no longer has the digest that it was
    written with.
    """
    data = of_json(text, name)
    try:
        file = _parse(data)
        placement = placement_of(
            file.placement.physical_to_logical,
            file.placement.gpus,
            file.placement.nodes,
            file.placement.experts,
        )
    except PlacerError as error:
        raise type(error)(f"{name}: {error}") from error
    if file.digest is not None and file.digest != placement.digest:
        raise FileError(
            f"{name}: its digest is {file.digest:.19}... but its map's is {placement.digest:.19}..."
            ": the map was changed; drop the digest if that was you"
        )
    before, after = file.score.before, file.score.after
    return Plan(
        placement=placement,
        reason=file.reason,
        mends=file.mends,
        model=file.model,
        topology=file.topology,
        objective=file.objective,
        provenance=file.provenance,
        fit=Comparison(before, after) if before and after else None,
        holdout=file.score.holdout,
        guarded=file.score.guarded,
        moves=file.moves,
        move_cost=file.move_cost,
        bound_s=file.bound_s,
        frontier=file.frontier,
        whole_step_s=file.whole_step_s,
        notes=file.notes,
        homes=file.homes,
    )


def placement_of(
    rows: list[list[int]], gpus: int, nodes: int, experts: int | None = None
) -> Placement:
    """A placement from lists. Without ``experts``, ids run up to the largest there is."""
    if len({len(row) for row in rows}) != 1:
        raise FileError("the layers of the map differ in length: is the file cut short?")
    try:
        table = np.array(rows, dtype=np.int32)
    except OverflowError as error:
        raise FileError(f"an expert id is out of all range ({error})") from error
    return Placement(table, experts or int(table.max(initial=-1)) + 1, gpus, nodes)


def write_plan(path: Path, plan: Plan) -> None:
    """Raises FileError if the file cannot be written; nothing is left half-written."""
    write_text(path, plan_text(plan))


def plan_text(plan: Plan) -> str:
    """What a plan's file holds."""
    placement = plan.placement
    file = PlanFile(
        digest=placement.digest,
        reason=plan.reason,
        mends=plan.mends,
        placement=PlacementSpec(
            gpus=placement.gpus,
            nodes=placement.nodes,
            experts=placement.experts,
            physical_to_logical=placement.physical_to_logical.tolist(),
        ),
        model=plan.model,
        topology=plan.topology,
        objective=plan.objective,
        provenance=plan.provenance,
        score=ScoreSpec(
            before=plan.fit.before if plan.fit else None,
            after=plan.fit.after if plan.fit else None,
            holdout=plan.holdout,
            guarded=plan.guarded,
        ),
        bound_s=plan.bound_s,
        frontier=plan.frontier,
        whole_step_s=plan.whole_step_s,
        notes=plan.notes,
        move_cost=plan.move_cost,
        moves=plan.moves,
        homes=plan.homes,
    )
    return _layout(file.model_dump(mode="json")) + "\n"


def _parse(data: Any) -> PlanFile:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise FileError(
            f'it is not a plan (no "format": "{FORMAT}"): placer import reads other engines\' files'
        )
    if data.get("version") != VERSION:
        raise FileError(
            f"it has version {data.get('version')!r} of {FORMAT}, this placer reads {VERSION}"
            ": upgrade placer"
        )
    try:
        return PlanFile.model_validate(data)
    except ValidationError as error:
        raise FileError(f"{first_fault(error)}: make the plan again") from error


def _layout(value: Any, indent: str = "") -> str:
    """JSON where only what holds lists or objects is broken into lines: one a layer, one a move."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    nested = {dict, list}.intersection(map(type, parts))  # quickly: most are lists of numbers
    if not nested or not any(isinstance(part, dict | list) and part for part in parts):
        return json.dumps(value)
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{json.dumps(k)}: {_layout(v, inner)}" for k, v in value.items()]
        return "{\n" + inner + f",\n{inner}".join(lines) + f"\n{indent}}}"
    lines = [_layout(item, inner) for item in value]
    return "[\n" + inner + f",\n{inner}".join(lines) + f"\n{indent}]"
