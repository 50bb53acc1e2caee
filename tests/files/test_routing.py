import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from placer.errors import FileError, RoutingError
from placer.files import routing
from placer.files.conventions import Survey
from placer.files.routing import (
    read_chunks,
    read_header,
    read_profile,
    read_trace,
    survey_of,
    write_profile,
    write_trace,
)
from placer.profile import of_chunks, of_trace
from placer.spread import Spread
from placer.trace import Trace
from tests.builders import a_model, loads, random_trace

MODEL = a_model(layers=3, experts=6, top_k=2)
TRACE = random_trace(0, tokens=50, layers=3, experts=6, top_k=2)


def test_a_trace_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    trace = Trace(
        TRACE.expert_ids,
        TRACE.seq_lens,
        TRACE.experts,
        token_ids=np.arange(50),
        gates=np.linspace(0, 1, 300).reshape(50, 3, 2),
        meta={"phase": "decode"},
    )
    write_trace(path, trace, a_model())
    found = read_trace(path, MODEL)
    assert (found.expert_ids == trace.expert_ids).all()
    assert (found.seq_lens == trace.seq_lens).all()
    assert found.token_ids is not None
    assert found.token_ids.tolist() == list(range(50))
    assert found.gates == pytest.approx(trace.gates, abs=1e-3)
    assert found.phase == "decode"
    assert read_header(path).meta["model"]["name"] == "tiny"


def test_a_header_says_what_the_file_is(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.npz", TRACE)
    write_profile(tmp_path / "p.npz", of_trace(TRACE))
    trace, profile = (read_header(tmp_path / name) for name in ("t.npz", "p.npz"))
    assert (trace.kind, trace.layers, trace.top_k, trace.experts) == ("trace", 3, 2, None)
    assert (profile.kind, profile.layers, profile.top_k, profile.experts) == ("profile", 3, 2, 6)
    assert trace.tokens == profile.tokens == 50
    assert survey_of(tmp_path / "t.npz") == Survey(TRACE.expert_ids.max() + 1, 2)


def test_pieces_are_whole_sequences_and_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "TOKENS_AT_A_TIME", 10)
    lens = np.array([3, 4, 5, 25, 1, 12])
    trace = Trace(TRACE.expert_ids, lens, 6)
    write_trace(tmp_path / "t.npz", trace)
    pieces = list(read_chunks(tmp_path / "t.npz", MODEL))
    assert len(pieces) > 2
    assert np.concatenate([piece.seq_lens for piece in pieces]).tolist() == lens.tolist()
    whole, summed = of_trace(trace), of_chunks(pieces)
    assert (whole.load == summed.load).all()
    assert whole.sequences == summed.sequences == 6


@pytest.mark.parametrize("profile", [of_trace(TRACE), loads([[1.5, 2, 3]])])
def test_a_profile_comes_back_as_it_was(tmp_path: Path, profile: object) -> None:
    write_profile(tmp_path / "p.npz", profile)  # type: ignore[arg-type]
    found = read_profile(tmp_path / "p.npz")
    for name in ("load", "transitions", "coactivation"):
        before, after = getattr(profile, name), getattr(found, name)
        assert (before is None and after is None) or (before == after).all()
    for name in ("top_k", "tokens", "sequences", "phase", "window_s"):
        assert getattr(profile, name) == getattr(found, name)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 1000),
    lens=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    scale=st.sampled_from([1.0, 0.1, 1e6]),
)
def test_how_traffic_varies_comes_back_as_it_was(
    tmp_path: Path, seed: int, lens: list[int], scale: float
) -> None:
    ids = random_trace(seed, tokens=sum(lens) + 1, experts=5).expert_ids[:-1]
    profile = of_trace(Trace(ids, np.array(lens), 5))
    before = profile.spread
    assert before is not None
    before = Spread(before.products * scale, before.lengths * scale, before.squares * scale, 12)
    write_profile(tmp_path / "p.npz", replace(profile, spread=before))
    after = read_profile(tmp_path / "p.npz").spread
    assert after is not None
    assert np.array_equal(after.products, before.products)
    assert np.array_equal(after.lengths, before.lengths)
    assert (after.squares, after.blocks) == (before.squares, before.blocks)


def test_a_profile_from_before_spreads_were_kept_still_reads(tmp_path: Path) -> None:
    write_profile(tmp_path / "p.npz", replace(of_trace(TRACE), spread=None))
    assert read_profile(tmp_path / "p.npz").spread is None


def test_clusters_of_requests_come_back_as_they_were(tmp_path: Path) -> None:
    before = of_trace(TRACE, clustered=True)
    write_profile(tmp_path / "p.npz", before)
    after = read_profile(tmp_path / "p.npz").clusters
    assert before.clusters is not None
    assert after is not None
    assert after.digest == before.clusters.digest
    write_profile(tmp_path / "old.npz", of_trace(TRACE))
    assert read_profile(tmp_path / "old.npz").clusters is None


def save(path: Path, meta: str, **arrays: object) -> Path:
    np.savez(path, meta=np.array(meta), **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("{", "meta is not JSON"),
        ("[1]", "meta is not a JSON object"),
        ('{"format": "placer.profile"}', "is a placer.profile, not a placer.trace"),
        ('{"version": 2}', "version 2 of placer.trace, this placer reads 1: upgrade"),
    ],
)
def test_a_strange_description_is_refused(tmp_path: Path, meta: str, message: str) -> None:
    ids = np.zeros((1, 1, 1), np.uint8)
    path = save(tmp_path / "t.npz", meta, expert_ids=ids, seq_lens=np.array([1]))
    with pytest.raises(FileError, match=message):
        read_trace(path, a_model(1))


def test_a_count_that_is_none_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "p.npz", '{"top_k": 1, "tokens": "2"}', load=np.ones((1, 2)))
    with pytest.raises(FileError, match="meta has tokens '2': it must be a number"):
        read_profile(path)


def test_negative_loads_are_refused(tmp_path: Path) -> None:
    meta = '{"top_k": 1, "tokens": 3, "sequences": 1}'
    path = save(tmp_path / "p.npz", meta, load=np.array([[1.0, -2.0]]))
    with pytest.raises(RoutingError, match="negative counts"):
        read_profile(path)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("spread_lengths", "no array 'spread_lengths'"),
        ("spread_squares", "meta has spread_squares None: it must be a number"),
        ("spread_blocks", "meta has spread_blocks None: it must be a number"),
    ],
)
def test_half_a_spread_is_refused(tmp_path: Path, missing: str, message: str) -> None:
    meta = {"top_k": 1, "tokens": 2, "sequences": 1, "spread_squares": 4, "spread_blocks": 1}
    arrays = {
        "load": np.ones((1, 2)),
        "spread_products": np.ones((1, 2, 2)),
        "spread_lengths": np.ones((1, 2)),
    }
    assert read_profile(save(tmp_path / "p.npz", json.dumps(meta), **arrays)).spread is not None
    meta.pop(missing, None)
    arrays.pop(missing, None)
    with pytest.raises(FileError, match=message):
        read_profile(save(tmp_path / "p.npz", json.dumps(meta), **arrays))


@pytest.mark.parametrize(
    ("version", "top_k", "kept"), [(1, 2, False), (1, 1, True), (2, 2, True), (None, 2, True)]
)
def test_transitions_of_the_first_expert_alone_are_left_out(
    tmp_path: Path, version: int | None, top_k: int, kept: bool
) -> None:
    """As version 1 counted them; of top-1 models they mean the same."""
    meta = {"top_k": top_k, "tokens": 2, "sequences": 1}
    meta |= {} if version is None else {"version": version}
    arrays = {
        "load": np.full((2, 2), top_k),
        "transitions": np.ones((1, 2, 2)) / 2,
        "coactivation": (top_k - 1) * 2 * (1 - np.tile(np.eye(2), (2, 1, 1))),
    }
    path = save(tmp_path / "p.npz", json.dumps(meta), **arrays)
    found = read_profile(path)
    assert (found.transitions is not None) == kept
    assert found.coactivation is not None
    assert read_header(path).outdated != kept


def test_neither_trace_nor_profile_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", weights=np.zeros(1))
    with pytest.raises(FileError, match=r"neither a trace .* nor a profile .*: it has weights"):
        read_header(tmp_path / "x.npz")


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    path.write_text("precious")
    with pytest.raises(AttributeError):
        write_trace(path, None)  # type: ignore[arg-type]
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot write .*none/t.npz: No such file"):
        write_trace(tmp_path / "none" / "t.npz", TRACE)
