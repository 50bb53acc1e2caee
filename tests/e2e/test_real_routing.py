"""Real routing: the bundled example always, DeepSeek-V2-Lite's where it can be found.

DeepSeek-V2-Lite's traces are looked for in $PLACER_TEST_DATA or ../shared/data.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = sorted((ROOT / "examples/tiny_moe/traces").glob("*.npz"))
DATA = Path(os.environ.get("PLACER_TEST_DATA", ROOT.parent / "shared" / "data"))
DEEPSEEK = sorted((DATA / "deepseek-v2-lite-routing").glob("*.npz"))

needs_deepseek = pytest.mark.skipif(
    not DEEPSEEK, reason=f"no DeepSeek-V2-Lite traces in {DATA}: set PLACER_TEST_DATA"
)


def placer(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "placer.cli.main", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def answer(*args: str | Path) -> dict[str, Any]:
    ended = placer(*args, "--json")
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def test_the_example_is_there_and_small() -> None:
    assert [path.stem for path in EXAMPLE] == ["code", "prose", "tables"]
    assert sum(path.stat().st_size for path in EXAMPLE) < 1_500_000
    model = ROOT / "examples/tiny_moe/model/model.safetensors"
    assert model.stat().st_size < 6_000_000


def test_balancing_the_example_holds_on_sequences_not_planned_from() -> None:
    options = ("--gpus", "4", "--redundant", "4", "--holdout", "0.5")
    eplb = answer("plan", *EXAMPLE, *options)
    linear = answer("plan", *EXAMPLE, *options, "--optimizer", "linear")
    assert eplb["holdout"]["balancedness"] > linear["holdout"]["balancedness"] + 0.2


@needs_deepseek
def test_deepseek_is_planned_scored_and_exported(tmp_path: Path) -> None:
    plan, page = tmp_path / "p.json", tmp_path / "p.html"
    found = answer("plan", *DEEPSEEK, "--gpus", "8", "--out", plan, "--html", page)
    assert found["balancedness"] > 0.98
    assert page.stat().st_size > 100_000
    scored = answer("score", plan, *(part for path in DEEPSEEK for part in ("--trace", path)))
    assert scored["balancedness"] == pytest.approx(found["balancedness"])
    assert placer("check", plan).returncode == 0
    for name in ("vllm", "sglang", "trtllm", "vllm-ascend"):
        out = tmp_path / name
        assert placer("export", plan, "--format", name, "--out", out).returncode == 0
        back = tmp_path / f"{name}.json"
        model = ("--model", "deepseek-v2-lite", "--gpus", "8")
        assert placer("import", out, "--format", name, *model, "--out", back).returncode == 0
        digests = [json.loads(path.read_text())["digest"] for path in (plan, back)]
        assert digests[0] == digests[1]


@needs_deepseek
def test_a_plan_for_one_domain_is_worse_on_the_other(tmp_path: Path) -> None:
    intent, law = DEEPSEEK
    plan = tmp_path / "p.json"
    own = answer("plan", intent, "--gpus", "8", "--out", plan)["balancedness"]
    assert answer("score", plan, "--trace", law)["balancedness"] < own - 0.1
