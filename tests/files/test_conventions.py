"""What engines write beside routed experts, and what becomes of it."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placer.errors import PlacerError, RoutingError
from placer.files.routing import read_chunks, read_header, read_profile, read_trace, survey_of
from placer.profile import of_chunks, of_trace
from placer.trace import Trace, told
from tests.builders import a_model, random_trace

MODEL = a_model(layers=2, experts=16, top_k=2)
# Experts 1 to 14, so that no id is like padding of 4 bits.
IDS = random_trace(0, tokens=200, layers=2, experts=14, top_k=2).expert_ids.astype(np.int64) + 1
LENS = np.full(20, 10)


def written(path: Path, ids: Any, lens: Any = LENS, **more: Any) -> Path:
    np.savez(path / "trace.npz", expert_ids=ids, seq_lens=lens, **more)
    return path / "trace.npz"


def the_same(trace: Trace, ids: Any = IDS) -> bool:
    return np.array_equal(np.sort(trace.expert_ids, axis=2), np.sort(ids, axis=2))


@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_integer_type_reads_the_same(tmp_path: Path, dtype: str, order: Any) -> None:
    lens = LENS.astype(dtype)
    path = written(tmp_path, np.array(IDS.astype(dtype), order=order), lens)
    trace = read_trace(path, MODEL)
    assert the_same(trace)
    assert trace.seq_lens.tolist() == LENS.tolist()
    assert survey_of(path).top_k == 2
    whole, pieces = of_trace(trace), of_chunks(read_chunks(path, MODEL))
    assert np.array_equal(whole.load, pieces.load)


@pytest.mark.parametrize(
    ("dtype", "nobody"),
    [("i4", -1), ("u1", 255), ("u2", 65_535), ("u4", 2**32 - 1), ("u8", 2**64 - 1), ("i8", -1)],
)
def test_rows_of_padding_are_left_out_with_their_count(
    tmp_path: Path, dtype: str, nobody: int
) -> None:
    ids = IDS.astype(dtype)
    ids[3] = ids[-25:] = np.array(nobody).astype(dtype)  # of a sequence, and whole ones
    path = written(tmp_path, ids)
    trace = read_trace(path, MODEL)
    kept = np.r_[0:3, 4:175]
    assert the_same(trace, IDS[kept])
    assert trace.seq_lens.tolist() == [9, *[10] * 16, 5]
    assert told(trace.notes) == (f"rows of padding left out (id {nobody} throughout): 26 tokens",)
    assert of_chunks(read_chunks(path, MODEL)).tokens == 174


def test_a_shared_experts_column_is_left_out_and_never_planned(tmp_path: Path) -> None:
    shared = np.full((200, 2, 1), 16)
    path = written(tmp_path, np.concatenate([IDS, shared], axis=2))
    assert (survey_of(path).experts, survey_of(path).top_k) == (15, 2)
    trace = read_trace(path, MODEL)
    assert the_same(trace)
    assert "column 2 of 3 left out: ids from 16 on are shared" in told(trace.notes)[0]


def test_a_column_of_padding_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, np.concatenate([IDS, np.full((200, 2, 1), -1)], axis=2))
    assert survey_of(path).top_k == 2
    trace = read_trace(path, MODEL)
    assert the_same(trace)
    (said,) = told(trace.notes)
    assert said == "column 2 of 3 left out: no ids of experts, but padding: 200 tokens"


def test_replicas_of_a_shared_expert_are_not_planned_either(tmp_path: Path) -> None:
    replicas = 16 + np.arange(400).reshape(200, 2, 1) % 4
    path = written(tmp_path, np.concatenate([IDS, replicas], axis=2))
    with pytest.raises(
        RoutingError, match=r"\(up to 14, and 16 to 19\): shared experts, or groups"
    ):
        survey_of(path)
    assert the_same(read_trace(path, MODEL))


def test_gates_go_with_their_columns(tmp_path: Path) -> None:
    gates = np.tile([0.7, 0.3, 1.0], (200, 2, 1))
    path = written(tmp_path, np.concatenate([IDS, np.full((200, 2, 1), 16)], axis=2), gates=gates)
    trace = read_trace(path, MODEL)
    assert trace.gates is not None
    at = IDS.argmin(axis=2)
    assert np.array_equal(trace.gates[:, :, 0], np.where(at == 0, 0.7, 0.3))


def test_rows_of_the_models_dense_layers_are_left_out(tmp_path: Path) -> None:
    dense = np.zeros((200, 1, 2), dtype=int)
    path = written(tmp_path, np.concatenate([dense, IDS[:, :1], dense, IDS[:, 1:]], axis=1))
    model = a_model(layers=2, experts=16, top_k=2, moe_layers=(1, 3))
    trace = read_trace(path, model)
    assert the_same(trace)
    (said,) = told(trace.notes)
    assert said == "rows 0, 2 of 4 left out: layers of tiny without experts: 200 tokens"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.full((200, 2, 2), -1), "expert_ids holds padding alone"),
        (IDS.astype(np.float32), r"expert_ids is float32\[200, 2, 2\]: it must be integers"),
        (
            np.concatenate([np.zeros((200, 1, 2), int), IDS[:, :1]], axis=1),
            r"layer 0 has the same ids in every token \(0, 0\): a layer without experts\?",
        ),
        (np.where(np.arange(2) == 1, -1, IDS), "token 0 has 1 of 2 experts in layer 0"),
        (IDS + 5, "is outside 0..15: is this another model's trace, or are these zero experts"),
        (np.where(np.arange(200)[:, None, None] == 9, 2**40, IDS), "is outside 0..15"),
        (np.where(np.arange(200)[:, None, None] == 9, 0, IDS), "and no other: if it only fills up"),
        (IDS[:, :0], r"expert_ids is \[200, 0, 2\]: without layers or experts"),
        (IDS[:, :, :0], r"expert_ids is \[200, 2, 0\]: without layers or experts"),
    ],
)
def test_what_cannot_be_told_is_named(tmp_path: Path, ids: Any, message: str) -> None:
    with pytest.raises(PlacerError, match=message):
        read_trace(written(tmp_path, ids), MODEL)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (
            np.full((200, 2, 2), -1),
            r"expert_ids holds no expert's id \(id -1 throughout, which is padding\)",
        ),
        (IDS.astype(np.float32), r"expert_ids is float32\[200, 2, 2\]: it must be integers"),
        (IDS[:, :, :0], r"expert_ids is \[200, 2, 0\]: without layers or experts"),
    ],
)
def test_a_trace_that_says_nothing_of_its_model_is_named(
    tmp_path: Path, ids: Any, message: str
) -> None:
    with pytest.raises(RoutingError, match=message):
        survey_of(written(tmp_path, ids))


def test_without_a_model_an_id_beyond_all_models_is_no_expert(tmp_path: Path) -> None:
    ids = IDS.copy()
    ids[7, 1, 0] = 2**40
    with pytest.raises(RoutingError):
        read_trace(written(tmp_path, ids), a_model(2, survey_of(tmp_path / "trace.npz").experts))


def profile(path: Path, **arrays: Any) -> Path:
    np.savez(path / "profile.npz", **arrays)
    return path / "profile.npz"


LOAD = np.array([[4, 3, 2, 1], [1, 1, 4, 4]]) * 30  # 150 tokens, top-2
SMALL = a_model(layers=2, experts=4, top_k=2)


@pytest.mark.parametrize("dtype", ["u1", "i4", "u8", "f4", ">i8"])
def test_loads_alone_are_enough_with_a_model(tmp_path: Path, dtype: str) -> None:
    path = profile(tmp_path, load=LOAD.astype(dtype))
    found = read_profile(path, SMALL)
    assert (found.tokens, found.top_k, found.sequences) == (150, 2, 0)
    assert np.array_equal(found.load, LOAD)
    with pytest.raises(RoutingError, match="loads alone: give --model"):
        read_profile(path)


def test_steps_are_added_up(tmp_path: Path) -> None:
    steps = np.array([LOAD, 2 * LOAD])
    found = read_profile(profile(tmp_path, load=steps), SMALL)
    assert np.array_equal(found.load, 3 * LOAD)
    assert told(found.notes) == ("loads summed over 2 steps (axis 0): 450 tokens",)


def test_dense_rows_of_loads_are_left_out(tmp_path: Path) -> None:
    load = np.array([[0] * 4, LOAD[0], LOAD[1]])
    model = a_model(layers=2, experts=4, top_k=2, moe_layers=(1, 2))
    found = read_profile(profile(tmp_path, load=load), model)
    assert np.array_equal(found.load, LOAD)
    assert "rows 0 of 3 left out" in told(found.notes)[0]


def test_tokens_that_the_loads_contradict_are_counted_from_the_loads(tmp_path: Path) -> None:
    meta = np.array('{"top_k": 2, "tokens": 15, "sequences": 1}')
    found = read_profile(profile(tmp_path, load=LOAD, meta=meta))
    assert found.tokens == 150
    assert "tokens counted from the loads" in told(found.notes)[0]


def test_one_ranks_counters_are_recognised(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    load = np.zeros((4, 64))
    load[:, 8:16] = rng.integers(500, 900, (4, 8))
    meta = np.array('{"top_k": 2, "tokens": 20000, "sequences": 1}')
    with pytest.raises(RoutingError, match=r"only 8 of 64 experts have any load, .* one rank's"):
        read_profile(profile(tmp_path, load=load, meta=meta))


def test_one_ranks_counters_are_recognised_where_each_layer_has_other_experts(
    tmp_path: Path,
) -> None:
    load = np.zeros((4, 64))
    for layer in range(4):
        load[layer, 12 * layer : 12 * layer + 12] = 500 + 100 * layer
    with pytest.raises(RoutingError, match="only 12 of 64 experts have any load of a layer"):
        read_profile(profile(tmp_path, load=load), a_model(layers=4, experts=64, top_k=2))


# Three tokens of top-2: experts 0 and 1 twice, 0 and 2 once.
PAIRS = np.array([[[0, 2, 1], [2, 0, 0], [1, 0, 0]]])


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"coactivation": 2 * PAIRS}, "6 co-activations of expert 0 in layer 0, .* can be 3"),
        ({"coactivation": np.triu(PAIRS)}, "not the same both ways"),
        ({"coactivation": np.diag([1, 0, 0])[None]}, "co-activations of an expert with itself"),
        (
            {"transitions": np.full((1, 3, 3), 0.4)},
            "3.6 transitions in layer 0, .* can be 3",
        ),
    ],
)
def test_pairs_must_be_of_the_tokens_that_the_loads_are_of(
    tmp_path: Path, pairs: dict[str, Any], message: str
) -> None:
    load = np.array([[3, 2, 1]] * (2 if "transitions" in pairs else 1))
    meta = np.array('{"top_k": 2, "tokens": 3}')
    with pytest.raises(RoutingError, match=message):
        read_profile(profile(tmp_path, load=load, meta=meta, **pairs))


def test_pairs_that_were_counted_of_a_part_may_be_more_than_all_loads_leave(tmp_path: Path) -> None:
    """Of one worker's tokens, and taken to be all workers': by chance some are too many."""
    meta = np.array('{"top_k": 2, "tokens": 3, "sampled": true}')
    read = read_profile(profile(tmp_path, load=[[3, 2, 1]], meta=meta, coactivation=1.5 * PAIRS))
    assert read.coactivation is not None
    assert read.coactivation.tolist() == (1.5 * PAIRS).tolist()


def test_pairs_that_fit_the_loads_are_kept(tmp_path: Path) -> None:
    meta = np.array('{"top_k": 2, "tokens": 3}')
    path = profile(tmp_path, load=[[3, 2, 1]], coactivation=PAIRS, meta=meta)
    assert np.array_equal(read_profile(path).coactivation, PAIRS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ('{"top_k": 0, "tokens": 3}', "top_k 0: it must be 1 or more"),
        ('{"top_k": 1.5, "tokens": 3}', "top_k 1.5: it must be a whole number"),
        ('{"top_k": 2, "tokens": 0}', "tokens 0: it must be more, or left out"),
    ],
)
def test_a_profile_of_no_tokens_or_experts_is_refused(
    tmp_path: Path, meta: str, message: str
) -> None:
    with pytest.raises(PlacerError, match=message):
        read_profile(profile(tmp_path, load=LOAD, meta=np.array(meta)))


# What SGLang's recorder dumps, as torch.save writes it: a pickle that names functions by module,
# and the arrays beside it. Written by hand, since torch is not needed to read it.
PICKLE = (
    b"\x80\x02}q\x00X\x0d\x00\x00\x00logical_countq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02"
    b"((X\x07\x00\x00\x00storageq\x03ctorch\nLongStorage\nq\x04X\x01\x00\x00\x000q\x05"
    b"X\x03\x00\x00\x00cpuq\x06K\x08tq\x07QK\x00K\x02K\x04\x86q\x08K\x04K\x01\x86q\x09\x89"
    b"ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0ds."
)


def saved(pickle: bytes) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("dump/data.pkl", pickle)
        archive.writestr("dump/byteorder", "little")
        archive.writestr("dump/data/0", LOAD.astype("<i8").tobytes())
    return file.getvalue()


@pytest.mark.parametrize("kind", ["pt", "json", "npz"])
def test_a_recorders_dump_is_a_profile(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"dump.{kind}"
    if kind == "pt":
        path.write_bytes(saved(PICKLE))
    elif kind == "json":
        path.write_text(f'{{"rank": 0, "logical_count": {LOAD.tolist()}}}')
    else:
        np.savez(path, logical_count=LOAD)
    header = read_header(path)
    assert (header.kind, header.layers, header.experts) == ("profile", 2, 4)
    found = read_profile(path, SMALL)
    assert np.array_equal(found.load, LOAD)
    assert found.tokens == 150


def test_no_code_of_a_dump_runs(tmp_path: Path) -> None:
    path = tmp_path / "dump.pt"
    path.write_bytes(saved(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R."))
    with pytest.raises(PlacerError, match=r"it names os\.system"):
        read_header(path)
