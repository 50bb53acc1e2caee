"""What is written to, and what is read from, at names that are not those of plain files."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from placer.errors import FileError
from placer.files.atomic import check_target, read_text, replacing, write_text
from placer.files.npz import opened


def test_the_file_behind_a_symlink_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    folder = tmp_path / "behind"
    folder.mkdir()
    (folder / "real").write_text("old")
    (tmp_path / "link").symlink_to("behind/real")
    (tmp_path / "second").symlink_to("link")
    was = (folder / "real").stat().st_ino
    write_text(tmp_path / "second", "new")
    assert (tmp_path / "second").is_symlink()
    assert (tmp_path / "link").is_symlink()
    assert (folder / "real").read_text() == "new"
    assert (folder / "real").stat().st_ino != was  # replaced, not written over
    assert list(folder.iterdir()) == [folder / "real"]


def test_a_link_to_nothing_yet_makes_the_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("later")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "later").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join()
    assert heard == ["through"]
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_device_is_written_to_and_stays_a_device() -> None:
    write_text(Path("/dev/null"), "gone")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(FileError, match="cannot write /dev/full: No space left on device"):
        write_text(Path("/dev/full"), "too much")


def test_arrays_go_through_a_pipe_as_well(tmp_path: Path) -> None:
    pipe, copy = tmp_path / "pipe", tmp_path / "copy.npz"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: copy.write_bytes(pipe.read_bytes()))
    reader.start()
    with replacing(pipe) as file:
        np.savez_compressed(file, a=np.arange(3))
    reader.join()
    with opened(copy) as npz:
        assert npz.array("a").tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["", ".", "/", "..", "folder", "folder/", "link", "no/file"])
def test_what_no_file_can_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("link").symlink_to("folder")
    with pytest.raises(FileError, match="cannot write"):
        check_target(Path(name))
    with pytest.raises(FileError, match="cannot write"):
        write_text(Path(name), "")


def test_only_regular_files_are_read_and_none_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # whose reader would wait for a writer, for ever
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(FileError, match=r"no regular file|Is a directory"):
            read_text(path, 10)
        with pytest.raises(FileError, match=r"no regular file|Is a directory"), opened(path):
            pass


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("12345")
    assert read_text(path, 5) == "12345"
    with pytest.raises(FileError, match="has more than 4 bytes, the limit"):
        read_text(path, 4)
    with path.open("wb") as file:
        file.truncate(2**40)  # a hole: reading it whole would take a terabyte
    with pytest.raises(FileError, match="has more than 4 bytes, the limit"):
        read_text(path, 4)
