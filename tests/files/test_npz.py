"""Whatever bytes a .npz holds, reading ends in arrays or in one FileError."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from placer.errors import FileError, PlacerError
from placer.files import npz
from placer.files.npz import opened
from placer.files.routing import (
    read_chunks,
    read_header,
    read_profile,
    read_trace,
    write_profile,
    write_trace,
)
from placer.profile import of_trace
from tests.builders import a_model, random_trace

MODEL = a_model(top_k=2)


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def read(path: Path, name: str = "a") -> Any:
    with opened(path) as archive:
        return archive.array(name)


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (read(save(tmp_path / "x.npz", a=array)) == array).all()


def test_rows_come_piece_by_piece(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", a=np.arange(10).reshape(5, 2))
    with opened(path) as archive, archive.rows("a", [2, 3]) as pieces:
        assert [piece.shape for piece in pieces] == [(2, 2), (3, 2)]


def test_pickled_objects_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(FileError, match="a holds pickled objects, which are never loaded"):
        read(path)


def with_header(path: Path, shape: tuple[int, ...], data: bytes, descr: str = "|u1") -> Path:
    """An array whose header says what it likes."""
    member = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", member.getvalue() + data)
    return path


def test_a_size_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    path = with_header(tmp_path / "x.npz", (10,), b"123")
    with pytest.raises(FileError, match="a should have 10 bytes of data and has 3"):
        read(path)


def test_an_oversized_array_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "MAX_ARRAY_BYTES", 4)
    path = with_header(tmp_path / "x.npz", (5,), b"12345")
    with pytest.raises(FileError, match="a has 5 bytes, the limit is 4: split the recording"):
        read(path)


def test_a_forged_size_beyond_all_memory_is_refused(tmp_path: Path) -> None:
    path = with_header(tmp_path / "x.npz", (2**62, 2**62), b"")
    with pytest.raises(FileError, match="the limit is"):
        read(path)


def test_zeros_that_deflate_to_next_to_nothing_are_refused_unread(tmp_path: Path) -> None:
    """2^26 of them take 65 kB; a recording of 65 kB has a tenth of that many values."""
    path = save(tmp_path / "x.npz", a=np.zeros(2**26, np.uint8))
    with pytest.raises(
        FileError, match=r"a is \[67108864\] in \d+ bytes: no recording is so uniform"
    ):
        read(path)
    small = save(tmp_path / "y.npz", a=np.zeros((16, 512, 512), np.uint8))  # a profile's may be
    assert not read(small).any()


def test_a_directory_that_promises_more_than_the_file_holds_is_not_believed(tmp_path: Path) -> None:
    path = with_header(tmp_path / "x.npz", (2**27,), b"")
    whole = path.read_bytes()
    at = whole.rindex(b"PK\x01\x02")
    sizes = (2**30).to_bytes(4, "little") + (2**27 + 128).to_bytes(4, "little")
    path.write_bytes(whole[: at + 20] + sizes + whole[at + 28 :])
    with pytest.raises(FileError, match=r"a is \[134217728\] in \d{3} bytes"):
        read(path)


def test_a_string_has_an_end(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", a=np.array("x" * 2**21), b=np.array(["x"]), c=np.array(1))
    with opened(path) as archive:
        for name in "abc":
            with pytest.raises(FileError, match=f"{name} is not a string of at most 1048576"):
                archive.text(name)
        for name in "ab":
            with pytest.raises(FileError, match=f"{name} is <U.*: it must be numbers"):
                archive.array(name)


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_what_numpy_does_not_pack_is_not_unpacked(tmp_path: Path, packing: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", packing) as archive:
        archive.writestr("a.npy", b"x" * 1000)
    with pytest.raises(FileError, match="a is packed in a way that NumPy does not"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "header",
    [
        "(" * 5000,
        "-" * 9000,
        "{'descr': '",
        "\n  \n x",
        "{",
        "1L",
        "",
        "{'a': [",
        "\x00",
        "{'descr': 'U'}",
    ],
)
def test_no_header_is_more_than_a_line(tmp_path: Path, header: str) -> None:
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", member)
    with pytest.raises(FileError) as caught:
        read(tmp_path / "x.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a whole .npz file"),
        (b"PK\x03\x04 and then nothing", "is not a whole .npz file"),
        (b"expert,load\n1,2\n", "is not a whole .npz file"),
    ],
)
def test_foreign_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message):
        read(path)


def test_a_missing_file_and_a_missing_array_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot read .*none.npz: No such file"):
        read(tmp_path / "none.npz")
    with pytest.raises(FileError, match=r"has no array 'a' \(it has b\)"):
        read(save(tmp_path / "x.npz", b=np.zeros(1)))


def test_a_truncated_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    write_trace(path, random_trace(0))
    whole = path.read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FileError):
            read_trace(path, MODEL)


FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.data())
def test_flipped_bytes_never_crash_a_reader(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "x.npz"
    trace = random_trace(data.draw(st.integers(0, 3)))
    if data.draw(st.booleans()):
        write_trace(path, trace)
    else:
        write_profile(path, of_trace(trace))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    read_everything(path)


NAMES = [
    *("expert_ids", "seq_lens", "token_ids", "gates", "meta"),
    *("load", "transitions", "coactivation", "spread_products", "spread_lengths"),
]

any_array = st.sampled_from(
    [
        np.zeros((2, 2, 2), np.uint8),
        np.array([[[0, 1]], [[1, 0]]], np.uint8),
        np.array([2]),
        np.array([1, 1], np.int8),
        np.array([2**62, 2**62]),
        np.array([-1, 3]),
        np.ones((2, 3)),
        np.full((1, 2), np.nan),
        np.array("{}"),
        np.array('{"format": "placer.profile", "version": 1, "top_k": 1, "tokens": 3}'),
        np.array(
            '{"top_k": 1, "tokens": 3, "sequences": 1, "spread_squares": 2, "spread_blocks": 20}'
        ),
        np.array('{"version": 7}'),
        np.array('["list"]'),
        np.array("nonsense"),
        np.zeros((0, 0, 0), np.uint8),
        np.array(["a", "b"]),
        np.array(3.5),
    ]
)


@FUZZ
@given(arrays=st.dictionaries(st.sampled_from(NAMES), any_array))
def test_arrays_of_any_kind_never_crash_a_reader(tmp_path: Path, arrays: dict[str, Any]) -> None:
    read_everything(save(tmp_path / "x.npz", **arrays))


def read_everything(path: Path) -> None:
    for reader in (
        read_header,
        read_profile,
        lambda p: read_trace(p, MODEL),
        lambda p: list(read_chunks(p, MODEL)),
    ):
        try:
            reader(path)
        except PlacerError as error:
            assert "\n" not in str(error)  # noqa: PT017
