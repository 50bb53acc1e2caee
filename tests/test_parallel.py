"""Wherever a sweep runs, it comes to the same."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp

import pytest

from placer.errors import PlacerError
from placer.objective import Objective
from placer.parallel import FOLDERS, _private, cores, ray_cluster
from placer.profile import of_trace
from placer.trials import Case, Study
from placer.whatif import Evaluate
from tests.builders import a_model, by_hand, random_trace
from tests.processes import children, folders_of, listening

TRACE = random_trace(0, tokens=200)
STUDY = Study(a_model(top_k=2), of_trace(TRACE), Objective(tokens_per_gpu=8), holdout=TRACE)
# One of them has no answer, since 5 slots do not divide by 2 GPUs.
CASES = [Case(by_hand(gpus), slots, "dedup") for gpus, slots in ((4, 0), (2, 4), (2, 1), (2, 0))]


def need_ray() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")


def test_cores_come_to_what_one_process_comes_to_in_the_same_order() -> None:
    with cores() as over:
        found = list(over(Evaluate(STUDY), CASES))
    assert found == list(map(Evaluate(STUDY), CASES))
    assert [bool(outcome.problem) for outcome in found] == [False, False, True, False]


SLEEPERS = """
import time
from placer.parallel import cores
if __name__ == "__main__":
    with cores() as over:
        list(over(time.sleep, [600] * 8))
"""
# Of Python's lock a worker lets nothing go while it multiplies for minutes.
BUSY = SLEEPERS.replace("time.sleep, [600]", "math.factorial, [10**8]").replace("time", "math")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are looked up in /proc")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("work", [SLEEPERS, BUSY], ids=["asleep", "busy"])
def test_workers_end_with_their_parent_however_it_ends(work: str, end: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", work], stderr=subprocess.DEVNULL)
    # A worker for every core, and Python's own tracker of shared resources.
    wait_until(lambda: len(children_of(parent.pid)) > (os.cpu_count() or 1))
    children = children_of(parent.pid)
    wait_until(lambda: all(threads_of(child) > 1 for child in children[1:]))
    if work is BUSY:  # starting takes less
        wait_until(lambda: all(seconds_of(child) > 3 for child in children[1:]))
    parent.send_signal(end)
    assert parent.wait() == -end
    wait_until(lambda: not any(map(is_alive, children)))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are looked up in /proc")
@pytest.mark.parametrize("workers", ["starting", "at work"])
def test_ctrl_c_is_the_parents_to_hear_and_ends_the_work_at_once(workers: str) -> None:
    """A terminal sends it to all of them; each sleeper would take ten minutes more."""
    call = [sys.executable, "-c", SLEEPERS]
    parent = subprocess.Popen(call, stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_until(lambda: len(children_of(parent.pid)) > (os.cpu_count() or 1))
    children = children_of(parent.pid)
    if workers == "at work":
        wait_until(lambda: all(threads_of(child) > 1 for child in children[1:]))
    os.killpg(parent.pid, signal.SIGINT)
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1  # the parent's own: no worker says anything
    wait_until(lambda: not any(map(is_alive, children)))


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def seconds_of(pid: int) -> float:
    """Of a processor, that it used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not done():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.xdist_group("ray")
@pytest.mark.slow
def test_a_ray_cluster_comes_to_what_cores_come_to() -> None:
    need_ray()
    with cores() as over:
        on_cores = list(over(Evaluate(STUDY), CASES))
    with ray_cluster("local") as over:
        assert list(over(Evaluate(STUDY), CASES)) == on_cores


@pytest.mark.xdist_group("ray")
@pytest.mark.slow
def test_a_ray_that_is_started_here_is_nobody_elses_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    need_ray()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "somebody-elses")
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    before = [os.environ.get(name) for name in names]
    with ray_cluster("local") as over:
        (told,) = over(os.environ.get, ["RAY_AUTH_MODE"])
        assert told == "token"
        below = children(os.getpid())
        assert {host for _, host in listening(below)} == {"127.0.0.1"}
        (folder,) = folders_of(below)
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.parent == folder
        assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, token)] == [0o700, 0o600]
        outsider = {**os.environ, "RAY_AUTH_TOKEN_PATH": "/dev/null"}
        gcs = import_module("ray").get_runtime_context().gcs_address
        code = f"import ray; ray.init(address={gcs!r}, log_to_driver=False)"
        joined = subprocess.run(
            [sys.executable, "-c", code], env=outsider, capture_output=True, timeout=60
        )
        assert joined.returncode != 0
    assert not folder.exists()
    assert [os.environ.get(name) for name in names] == before


@pytest.mark.xdist_group("ray")
@pytest.mark.slow
def test_the_folder_of_a_killed_process_goes_when_the_next_one_starts() -> None:
    need_ray()
    code = """
import os, signal
from placer import parallel
with parallel._private() as folder:
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    orphan = Path(killed.stdout.strip())
    assert orphan.is_dir()
    older = Path(mkdtemp(prefix=FOLDERS, dir="/tmp"))  # of a release that locked none: may live
    (older / "token").touch()
    try:
        with _private() as lives, _private() as other:
            assert not orphan.exists()
            assert all(folder.is_dir() for folder in (lives, other, older))
    finally:
        shutil.rmtree(older)
    assert not lives.exists()


@pytest.mark.xdist_group("ray")
@pytest.mark.slow
def test_an_address_that_is_none_is_named() -> None:
    need_ray()
    with pytest.raises(PlacerError, match=r"no Ray cluster at 'nowhere' .*: check --ray"):
        ray_cluster("nowhere").__enter__()


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(PlacerError, match=r"^--ray needs ray: pip install \S*ray\S*$"):
        ray_cluster("local").__enter__()
