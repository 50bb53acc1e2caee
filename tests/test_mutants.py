"""Whatever is wrong with a file: an exit code and one line. More: python -m bench mutants."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of time and memory are Linux's")
def test_no_mutant_of_any_file_gets_through_any_verb_that_reads_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "bench", "mutants"],
        cwd=ROOT,
        env={"SEED": "1", "MUTANTS": "200", **os.environ},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    codes = {int(code): int(times) for times, code in re.findall(r"(\d+) with (\d)", ended.stdout)}
    assert min(codes[0], codes[2]) > 40, "neither is everything refused, nor nothing"
