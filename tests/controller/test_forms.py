"""What is written down has one form a kind, which one place reads and writes."""

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import controller
from controller.changes.operations import Apply, Operation, Rollback, Scale
from controller.forms import FORMS
from tests.controller.ledger import golden_ledger
from tests.controller.tiny_pool import GOAL, POOL, World, in_virtual_time

ROWS: list[tuple[str, str]] = []
for _path in golden_ledger.KEPT:
    with closing(sqlite3.connect(f"file:{_path}?mode=ro&immutable=1", uri=True)) as _file:
        ROWS += _file.execute("SELECT kind, body FROM records").fetchall()
ROOT = Path(controller.__file__).parent
# A router's bodies are of requests, and it knows no ledger.
# But for what knows operations by the API alone.
SOURCES = sorted(
    path for path in ROOT.rglob("*.py") if not {"router", "kube", "page"} & set(path.parts)
)

LATER = {"capacity", "policy", "reading"}


def test_every_kind_of_before_has_a_form_and_is_read_as_it_is_written() -> None:
    assert {kind for kind, _ in ROWS} == set(FORMS) - LATER
    for kind, body in ROWS:
        value = FORMS[kind].read(json.loads(body))
        row: dict[str, Any] = json.loads(json.dumps(FORMS[kind].write(value)))
        assert FORMS[kind].read(row) == value


def test_a_change_is_written_among_its_operations_fields() -> None:
    """Where the command line of 0.1.0 looks for it."""
    form = FORMS["operation"]
    for change in (Apply("plan-1", "sha256:1"), Rollback("plan-1", "sha256:1"), Scale(4)):
        row = form.write(Operation("op-1", "", POOL, change, 192, 0.0))
        assert (row["kind"], row["plan_id"], row["phase"]) == (
            change.kind, change.plan_id, "running",
        )  # fmt: skip
        assert form.read(dict(row)).change == change


@pytest.mark.parametrize(
    ("pattern", "where"),
    [
        (r"\.body\b", []),
        (r"""\[["']body["']\]""", ["records.py"]),
        (r"""kind (==|!=|in) [("']*(apply|rollback|scale)""", []),
    ],
)
def test_nobody_but_the_ledger_looks_into_a_row_nor_asks_for_a_kind(
    pattern: str, where: list[str]
) -> None:
    found = [path.name for path in SOURCES if re.search(pattern, path.read_text())]
    assert found == where


def test_each_kind_of_change_stands_in_the_table() -> None:
    assert set(World().arbiter.kinds) == {Apply, Rollback, Scale}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ('"$.kind", "shrink"', "is of kind 'shrink', which this version does not know"),
        ('"$.goal", ""', "is running, and leads nowhere"),
        ('"$.rollback_targets", 7', "has an unknown form: "),
    ],
)
@in_virtual_time
async def test_an_operation_of_another_version_is_named_and_left_out(change: str, why: str) -> None:
    """Its plan is halted, and the next one is applied."""
    world = World()
    await world.apply(GOAL)
    world.arbiter._task.cancel()  # type: ignore[union-attr]
    change = change.replace('"', "'")
    world.disk._connection.execute(
        f"UPDATE records SET body = json_set(body, {change}) WHERE kind = 'operation'"
    )
    world.start()
    await world.tick()
    assert why in world.loop.told()["operation op-1"]
    assert world.states() == {"plan-1": "halted"}
    await world.apply(GOAL)
    await world.arbiter.settle()
    assert (world.stand_at(GOAL), world.states()["plan-2"]) == (True, "applied")
