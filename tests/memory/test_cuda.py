"""Memory of CUDA devices, against a stand-in driver. No GPU is asked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
COMPILER = shutil.which("cc") or shutil.which("gcc")


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, env=told, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed: .[cuda] has it")
    if COMPILER is None:
        pytest.skip("there is no C compiler for the stand-in driver: install gcc")
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    built = run(COMPILER, "-shared", "-fPIC", "-o", str(library), str(HERE / "stand_in_cuda.c"))
    assert built.returncode == 0, built.stderr
    done = run(sys.executable, "-m", "tests.memory.cuda_story", LD_LIBRARY_PATH=str(folder))
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_new_memory_is_zero_whatever_the_driver_left_in_it(story: dict[str, Any]) -> None:
    assert (story["granularity"], story["begun"]) == (2 * 2**20, 0)


def test_two_processes_see_one_memory_each_in_its_own_order(story: dict[str, Any]) -> None:
    assert story["seen"] == [[10, 11, 12], [12, 11, 10]]
    assert story["shared"] == 99


def test_a_page_is_mapped_in_place_of_another(story: dict[str, Any]) -> None:
    assert story["replaced"] == 99


def test_memory_lives_as_long_as_a_mapping_and_no_longer(story: dict[str, Any]) -> None:
    assert story["kept"] == 11
    assert story["left nothing"]
    assert story["open"] == []


def test_what_the_driver_cannot_do_is_refused(story: dict[str, Any]) -> None:
    refused, size = story["refused"], story["granularity"]
    assert refused["part"].startswith(f"a run at {size} of what is created: CUDA maps whole")
    assert refused["half"] == f"{size} bytes are mapped as one: unmap all of them, or none"
    assert refused["odd"] == "cuMemCreate: CUDA_ERROR_INVALID_VALUE"
    assert refused["nobody"] == "cuDeviceGet: CUDA_ERROR_INVALID_DEVICE"


def test_nobody_imports_it_unasked() -> None:
    code = (
        "import sys, controller.assemble, controller.local_engine.local_engine, placer.cli.main;"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'cuda'], 'imported';"
        "assert 'placer.memory.cuda' not in sys.modules"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_without_its_library_it_names_the_command_that_installs_it() -> None:
    code = "import sys; sys.modules['cuda.bindings'] = None; import placer.memory.cuda"
    done = run(sys.executable, "-c", code)
    assert "MissingError: memory of CUDA devices needs cuda-bindings: pip install" in done.stderr
