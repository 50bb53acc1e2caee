"""Is a checkpoint of two small files what it was when it was loaded?"""

import os
import shutil
from pathlib import Path

import pytest

from placer.agent.vllm.weights.checkpoint import File, change, digested, stamps
from placer.errors import PlacerError


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "model-1.safetensors", tmp_path / "model-2.safetensors"]
    for path in paths:
        path.write_bytes(b"weights")
    return paths


@pytest.fixture
def loaded(files: list[Path]) -> dict[str, File]:
    return digested(files, stamps(files))


def test_untouched_files_are_what_they_were_and_are_not_read_again(
    files: list[Path], loaded: dict[str, File], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hashlib.file_digest", None)
    assert change(files, loaded) == ""


def test_a_file_that_was_written_over_is_named_with_both_digests(
    files: list[Path], loaded: dict[str, File]
) -> None:
    """With the same size, and its old times put back."""
    before = files[1].stat()
    files[1].write_bytes(b"Weights")
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    # echo -n Weights | sha256sum; echo -n weights | sha256sum
    assert change(files, loaded) == (
        "has SHA-256 147ec1549866 in model-2.safetensors, and had 9a129038d9a0"
    )


def test_a_file_of_another_size_is_named(files: list[Path], loaded: dict[str, File]) -> None:
    files[0].write_bytes(b"weights!")
    assert change(files, loaded) == "has 8 bytes in model-1.safetensors, and had 7"


def test_a_copy_elsewhere_is_as_good(
    files: list[Path], loaded: dict[str, File], tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    copies = [Path(shutil.copy(path, tmp_path / "copy")) for path in files]
    assert change(copies, loaded) == ""


def test_files_that_come_or_go_are_named(files: list[Path], loaded: dict[str, File]) -> None:
    assert change(files[:1], loaded) == (
        "has the files model-1.safetensors, and had model-1.safetensors, model-2.safetensors"
    )


def test_a_checkpoint_that_is_still_being_written_is_refused(files: list[Path]) -> None:
    before = stamps(files)
    files[0].write_bytes(b"more of it")
    with pytest.raises(PlacerError, match=f"{files[0]} changes while it is loaded: start again"):
        digested(files, before)
