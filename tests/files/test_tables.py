"""Table files: they come back as they were, and whatever else they hold ends in one FileError."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from placer.errors import FileError
from placer.files.routing import write_trace
from placer.files.tables import read_tables, write_tables
from placer.tables import Tables, counted, tables_of
from tests.builders import a_model, a_placement
from tests.tables.test_made import MODEL, PLACEMENT, a_recording, arrays


def some(seed: int = 1) -> Tables:
    return tables_of(counted(a_recording(seed), PLACEMENT), MODEL, "sha256:aa")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_tables(tmp_path / "t.npz", some())
    return tmp_path / "t.npz"


def changed(path: Path, **arrays: Any) -> Path:
    """The file with other arrays; None leaves one out."""
    with np.load(path) as saved:
        found = {**dict(saved), **arrays}
    np.savez_compressed(path, **{name: array for name, array in found.items() if array is not None})
    return path


def with_meta(path: Path, **values: Any) -> Path:
    with np.load(path) as saved:
        meta = {**json.loads(str(saved["meta"])), **values}
    return changed(path, meta=np.array(json.dumps(meta)))


def test_tables_come_back_as_they_were(path: Path) -> None:
    found, written = read_tables(path), some()
    assert arrays(found) == arrays(written)
    assert found.origin == written.origin
    assert found.placement.digest == PLACEMENT.digest
    for part in (found.devices, found.experts):
        for name in part.__slots__:
            if isinstance(array := getattr(part, name), np.ndarray):
                assert not array.flags.writeable


def test_answers_stay_as_far_from_the_mean_and_as_foretold_in_files_that_do_not_tell(
    tmp_path: Path,
) -> None:
    tables, path = some(), tmp_path / "t.npz"
    write_tables(path, replace(tables, used=tables.used._replace(further=2.5)))
    assert read_tables(path).used.further == 2.5
    with np.load(path) as saved:
        meta = json.loads(str(saved["meta"]))
    del meta["further"]
    assert read_tables(changed(path, meta=np.array(json.dumps(meta)))).used.further == 1


def test_of_one_layer_too(tmp_path: Path) -> None:
    trace, model = a_recording(1), a_model(layers=1, experts=4, top_k=2)
    one = type(trace)(trace.expert_ids[:, :1], trace.seq_lens, 4, trace.token_ids)
    tables = tables_of(counted(one, a_placement([[0, 1, 2, 3]])), model)
    write_tables(tmp_path / "t.npz", tables)
    assert arrays(read_tables(tmp_path / "t.npz")) == arrays(tables)


def test_the_file_holds_no_array_of_the_requests_tokens(path: Path) -> None:
    with np.load(path) as saved:
        assert all(80 not in array.shape for array in saved.values())
        assert saved["device"].dtype == saved["confidence"].dtype == np.uint8


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"device": np.full((3, 7), 2, dtype=np.uint8)}, "device does not fit"),
        ({"device": np.full((3, 7), -1)}, "device does not fit"),
        ({"device": np.zeros((3, 6), dtype=np.uint8)}, "device does not fit"),
        ({"device": np.zeros((3, 7))}, "device does not fit"),
        ({"confidence": np.full((3, 7), 256)}, "confidence does not fit"),
        ({"next_device": np.full((3, 2, 2), 9)}, "next_device does not fit"),
        ({"near": np.full((7, 2), np.nan, dtype=np.float16)}, "near does not fit"),
        ({"near": np.full((7, 2), 1.5, dtype=np.float16)}, "near does not fit"),
        ({"near": np.zeros((7, 3), dtype=np.float16)}, "near does not fit"),
        ({"near": np.zeros((0, 2), dtype=np.float16)}, "near does not fit"),
        ({"tokens": np.arange(6)[::-1].copy()}, "tokens does not fit"),
        ({"tokens": np.zeros(0, dtype=np.int64)}, "near does not fit"),
        ({"tokens": np.arange(6, dtype=np.float64)}, "tokens does not fit"),
        ({"row": np.full(6, 7)}, "row does not fit"),
        ({"row": np.arange(5)}, "row does not fit"),
        ({"contexts_2": np.zeros(0, dtype=np.uint64)}, "experts does not fit"),
        ({"contexts_3": np.zeros((2, 2), dtype=np.uint64)}, "contexts_3 does not fit"),
        ({"experts": np.zeros((3, 7, 2), dtype=np.uint8)}, "experts does not fit"),
        ({"experts": np.zeros((3, 7), dtype=np.uint8)}, r"experts is \[3, 7\]: it must be"),
        ({"likely": None}, "has no array 'likely'"),
        ({"following": np.full((2, 4, 4), np.inf, dtype=np.float16)}, "following does not fit"),
        ({"following": np.zeros((2, 4, 4))}, "following does not fit"),
        ({"placement": np.zeros((3, 5), dtype=int)}, "its placement: 5 slots do not divide by 2"),
        (
            {"placement": np.array([[0, 1, 2, 3]] * 3)},
            r"for plan sha256:\w+\.\.\. but its placement",
        ),
        ({"meta": None}, "is no table file"),
        ({"meta": np.array("[]")}, "meta is not a JSON object"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(
    path: Path, arrays: dict[str, Any], told: str
) -> None:
    changed(path, **arrays)
    with pytest.raises(FileError, match=told):
        read_tables(path)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"plan": None}, "meta has plan None"),
        ({"plan": "sha256:00"}, "it is for plan sha256:00... but its placement is"),
        ({"dims": "2 layers x 4 experts, top-2"}, "experts does not fit"),
        ({"tokens": -1}, "meta has tokens -1"),
        ({"sequences": True}, "meta has sequences True"),
        ({"further": -1.0}, "meta has further -1.0"),
        ({"further": 1e9}, "meta has further 1000000000.0"),
        ({"further": None}, "meta has further None"),
        ({"keyed_by": "names"}, "keyed_by 'names': it must be 'token ids' or 'expert sets"),
        ({"placement": [2, 1]}, r"meta has placement \[2, 1\]"),
        ({"placement": {"experts": 4, "gpus": 0, "nodes": 1}}, "meta has gpus 0"),
        ({"placement": {"experts": 2**40, "gpus": 2, "nodes": 1}}, "its placement: .* are beyond"),
        ({"version": 2}, "version 2 of placer.tables, this placer reads 1: upgrade"),
        ({"format": "placer.trace"}, "is a placer.trace, not a placer.tables"),
    ],
)
def test_a_description_that_does_not_fit_is_refused_by_value(
    path: Path, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(FileError, match=told):
        read_tables(with_meta(path, **values))


def test_a_trace_is_no_table_file(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.npz", a_recording(1))
    with pytest.raises(FileError, match=r"is a placer\.trace, not a placer\.tables"):
        read_tables(tmp_path / "t.npz")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_a_file_with_bytes_changed_or_cut_off_is_read_or_refused(
    tmp_path: Path, data: st.DataObject
) -> None:
    whole = tmp_path / "whole.npz"
    if not whole.exists():
        write_tables(whole, some())
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / "t.npz"
    path.write_bytes(content)
    told = ""
    try:
        read_tables(path)
    except FileError as error:
        told = str(error)
    assert not told or str(path) in told
    assert "\n" not in told


def test_nothing_is_left_half_written(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write"):
        write_tables(tmp_path / "none" / "t.npz", some())
    assert not list(tmp_path.iterdir())
