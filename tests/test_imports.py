"""What importing costs: every vLLM worker imports placer."""

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    code = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_importing_placer_pulls_in_nothing() -> None:
    assert modules_after("import placer") == {"placer"}


def test_planning_pulls_in_neither_pydantic_nor_plotting() -> None:
    found = modules_after("import placer.planner")
    assert not {"pydantic", "plotly", "jinja2", "rich", "typer", "numba", "ray"} & found


def test_a_controller_pulls_in_no_solver_and_no_web_server_before_one_is_asked_for() -> None:
    found = modules_after(
        "import controller.assemble; from placer import optimizers as o; o.known('joint')"
    )
    assert "controller.assemble" in found
    assert not {"scipy", "numba", "ortools", "pulp", "aiohttp", "jinja2", "rich", "ray"} & found
