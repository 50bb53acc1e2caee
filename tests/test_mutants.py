"""Whatever is wrong with a file: an exit code and one line. More: python -m bench mutants."""

import os
import sys

import pytest

from bench.mutants import survive


@pytest.mark.skipif(sys.platform != "linux", reason="limits of time and memory are Linux's")
def test_no_mutant_of_any_file_gets_through_any_verb_that_reads_it() -> None:
    seed = int(os.environ.get("SEED", "1"))
    failures, codes = survive(count=150, seed=seed)
    assert not failures
    assert codes[0] > 20  # nor is everything refused
    assert codes[2] > 20
