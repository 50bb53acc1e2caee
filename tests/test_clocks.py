"""Time, ids and lots come from the clock: what ruff's TID251 finds in controller/ and placer/agent/
are imports, and here is what else would take them from elsewhere."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [*ROOT.glob("controller/**/*.py"), *ROOT.glob("placer/agent/**/*.py")]
OF_AN_EVENT_LOOP = ("time", "call_later", "call_at")
# Others' clocks, which no virtual time passes on.
REAL = {
    "controller/engines/http_metrics.py": "HTTP's deadline of an answer",
    "controller/engines/vllm_api.py": "whether an API server answers",
    "controller/hosts/process.py": "whether a controller has started",
    "controller/hosts/ray.py": "whether Ray answers",
    "controller/kube/known.py": "gRPC's deadline of a call",
    "controller/ledger/file.py": "SQLite's, for its file's lock",
    "controller/local_engine/local_engine.py": "how often processes are looked after",
    "controller/local_engine/recovery.py": "the same, of memory processes",
    "controller/local_engine/ranks/standbys.py": "how long after a switch they are replaced",
    "controller/local_engine/ranks/rank.py": "how long a step of a paced device lasts",
    "placer/agent/grpc_sink.py": "gRPC's deadline of a call",
    "placer/agent/streams.py": "the same of a call in a stream",
}


def is_timed(call: ast.Call) -> bool:
    """Whether it reads or waits for a time that no clock gave, or draws lots without a seed."""
    if any(one.arg == "timeout" for one in call.keywords):
        return True
    if not isinstance(call.func, ast.Attribute):
        return False
    name, owner = call.func.attr, ast.unparse(call.func.value)
    waits = name in ("wait", "settimeout") and bool(call.args)
    waits = waits and not owner.endswith(("_clock", "strangers")) and owner != "asyncio"
    return waits or name in OF_AN_EVENT_LOOP or (name == "default_rng" and not call.args)


def timed(text: str) -> list[int]:
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if is_timed(call)]


@pytest.mark.parametrize(
    "text",
    ["loop.time()", "loop.call_later(1, f)", "event.wait(1)", "queue.get(timeout=1)",
     "default_rng(); np.random.default_rng()", "asyncio.wait(tasks, timeout=1)"],
)  # fmt: skip
def test_it_is_found(text: str) -> None:
    assert timed(text) == [1]


def test_time_and_lots_are_taken_from_the_clock() -> None:
    found = {str(path.relative_to(ROOT)): timed(path.read_text()) for path in MODULES}
    assert {name for name, lines in found.items() if lines} == set(REAL), found
