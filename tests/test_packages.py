"""The package as others get it: a source distribution, and what the bare one can do."""

import subprocess
import sys
import tarfile
from pathlib import Path
from venv import EnvBuilder

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0+cpu"
# Two layers of three experts, top-2: tokens of experts 0 and 1, 1 and 2; one is decoded.
FOLD = """
import numpy as np, torch
from pathlib import Path
from placer.agent.file_sink import FileSink
from placer.agent.recording import Recording
from placer.agent.vllm.counters import Counters
from placer.worker import Worker

counters = Counters(layers=2, experts=3, top_k=2, max_tokens=4, device=torch.device("cpu"))
for layer in range(2):
    counters.capture(layer, torch.tensor([[0, 1], [1, 2]]))
counters.stage(first=0, count=2, at=0)
counters.fold(np.array([False, True]))
recording = Recording(counters.take(), [], np.array([1, 1]), window_s=1.0)
worker = Worker("worker-0", "m", 2, 3, 2, 3, ep_rank=0, ep_size=1, can_apply=False, records=True)
FileSink(Path("out"), worker, None).push(1, recording)
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as an index would have both."""
    folder = tmp_path_factory.mktemp("dist")
    done = run(sys.executable, "-m", "build", "--outdir", folder, ".", cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the wheel and nothing else that it does not ask for."""
    folder = tmp_path_factory.mktemp("bare")
    EnvBuilder(with_pip=True).create(folder)
    python = folder / "bin" / "python"
    done = run(python, "-m", "pip", "install", "-q", wheel, cwd=folder)
    assert done.returncode == 0, done.stderr
    return python


def test_the_source_distribution_holds_what_it_takes_to_build_and_to_test(wheel: Path) -> None:
    source = next(wheel.parent.glob("*.tar.gz"))
    with tarfile.open(source) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    for name in ("README.md", "LICENSE", "protos/placer/v1/fleet.proto", "placer/py.typed",
                 "controller/py.typed", "tests/test_packages.py", "constraints.txt"):  # fmt: skip
        assert name in names


def test_a_plan_without_planners_names_the_command_that_installs_them(bare: Path) -> None:
    placer = bare.parent / "placer"
    assert run(placer, "--version", cwd=bare.parent).stdout.startswith("placer ")
    trace = ROOT / "examples" / "tiny_moe" / "traces" / "code.npz"
    done = run(placer, "plan", trace, "--gpus", "4", cwd=bare.parent)
    assert done.returncode == 2
    assert "placer plan needs numba: pip install " in " ".join(done.stderr.split())


def test_the_bare_package_and_torch_fold_counters_and_write_a_recording(bare: Path) -> None:
    done = run(bare, "-m", "pip", "install", "-q", TORCH, cwd=bare.parent)
    if done.returncode:
        pytest.skip(f"{TORCH} cannot be installed here")
    done = run(bare, "-c", FOLD, cwd=bare.parent)
    assert done.returncode == 0, done.stderr
    shown = run(bare.parent / "placer", "show", "out/worker-0/decode.npz", cwd=bare.parent)
    assert "decode" in shown.stdout  # tokens of experts 1 and 2: 1.5 times the mean of three
    assert "1.5x the" in shown.stdout
