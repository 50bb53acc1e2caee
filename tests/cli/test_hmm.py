"""placer hmm as a user meets it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Placer


def test_a_socket_that_cannot_be_ends_with_two_and_one_line(placer: Placer) -> None:
    ended = placer("hmm", "--socket", "missing/hmm.sock")
    assert ended.code == 2
    assert "cannot listen at missing/hmm.sock (No such file or directory)" in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_told_and_leaves_nothing(tmp_path: Path, way: signal.Signals) -> None:
    path = tmp_path / "hmm.sock"
    command = [sys.executable, "-m", "placer.cli.main", "hmm", "--socket", str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not path.is_socket():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(way)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert f"PLACER_HMM={path} vllm serve MODEL --load-format placer" in out
    assert "weights live on in the engines that have them" in err
    assert not path.exists()
