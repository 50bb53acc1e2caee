from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controller.config import Config, Hours, PoolPolicy, Traces, read_config
from controller.size_settings import Autoscale
from placer.errors import PlacerError, TopologyError
from placer.topology import preset

KEYS: dict[str, tuple[str, Any]] = {
    "control": ("0.2", 0.2),
    "mode": ("automatic", "automatic"),
    "nodes": ("2", 2),
    "optimizer": ("eplb", "eplb"),
    "dispatch": ("dedup", "dedup"),
    "phase": ("decode", "decode"),
    "window_s": ("60", 60.0),
    "least_tokens": ("5", 5),
    "confirmations": ("1", 1),
    "cooldown_s": ("0", 0.0),
    "overlap": ("0.5", 0.5),
    "guard": ("0.2", 0.2),
    "max_moved": ("0.5", 0.5),
    "horizon_s": ("120", 120.0),
    "survive_node": ("true", True),
    "bytes_per_minute": ("1000", 1000),
    "rank_bytes": ("4096", 4096),
    "scratch_slots": ("0", 0),
    "hours": ("['22:00-06:00']", (Hours(22 * 60, 6 * 60),)),
    "traces": ("{requests: 100, kept_s: 60, token_ids: true}", Traces(100, 60.0, True)),
    "autoscale": ("{ranks: [2, 8]}", Autoscale(least=2, most=8)),
}


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read_text(text: str) -> Config:
        path = tmp_path / "serve.yaml"
        path.write_text(text)
        return read_config(path)

    return read_text


def at(hour: int, minute: int = 0) -> float:
    return datetime(2026, 3, 1, hour, minute, tzinfo=UTC).timestamp()


def test_without_a_file_the_controller_only_advises() -> None:
    config = read_config(None)
    policy = config.of("any")
    assert (policy.mode, policy.optimizer, policy.topology.name) == ("advisory", "joint", "h100")
    assert policy.closed(at(12)) == ""
    assert (config.every_s, config.retention_days, config.pools) == (30.0, 30.0, {})


def test_a_topology_may_be_written_out(read: Any) -> None:
    config = read("pools: {big: {topology: {preset: h100, gpus: 16, nodes: 2}}}")
    assert config.of("big").topology == preset("h100").resized(16, 2)
    with pytest.raises(PlacerError, match=r"pools.big.topology.gpus: field required"):
        read("pools: {big: {topology: {preset: h100}}}")


@pytest.mark.parametrize("text", ["", "{}", "# nothing\n", "default: {}"])
def test_a_file_that_says_nothing_is_none(read: Any, text: str) -> None:
    assert read(text) == read_config(None)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_changes_its_setting_and_no_other(read: Any, key: str) -> None:
    written, meant = KEYS[key]
    default, changed = read_config(None).default, read(f"default: {{{key}: {written}}}").default
    for name in PoolPolicy.__slots__:
        assert getattr(changed, name) == (meant if name == key else getattr(default, name))
    assert meant != getattr(default, key)


def test_all_settings_have_a_key() -> None:
    assert {*KEYS, "topology"} == set(PoolPolicy.__slots__)


def test_the_hardware_is_a_preset_or_a_file_resized_to_the_pools_ranks(
    read: Any, tmp_path: Path
) -> None:
    path = tmp_path / "rack.yaml"
    path.write_text("{preset: a100, gpus: 4, nodes: 2}")
    config = read(f"pools: {{a: {{topology: gb200-nvl72}}, b: {{topology: {path}}}}}")
    assert config.of("a").topology.name == "gb200-nvl72"
    hardware = config.of("b").hardware(8)
    assert (hardware.name, hardware.gpus, hardware.nodes) == ("rack", 8, 4)
    with pytest.raises(TopologyError, match="12 GPUs do not fill nodes of 8"):
        config.default.hardware(12)


def test_a_pool_has_the_defaults_but_for_what_it_says_itself(read: Any) -> None:
    config = read(
        "{every_s: 5, retention_days: 2, default: {mode: automatic, hours: ['01:00-02:00']}, "
        "pools: {chat: {mode: advisory, hours: []}, code: {optimizer: eplb}}}"
    )
    assert (config.every_s, config.retention_days) == (5.0, 2.0)
    modes = {name: config.of(name).mode for name in ("chat", "code", "new")}
    assert modes == {"chat": "advisory", "code": "automatic", "new": "automatic"}
    assert (config.of("chat").hours, len(config.of("code").hours)) == ((), 1)
    assert (config.of("code").optimizer, config.of("new").optimizer) == ("eplb", "joint")


@pytest.mark.parametrize("key", [*KEYS, "topology"])
def test_null_takes_a_default_back(read: Any, key: str) -> None:
    written = KEYS[key][0] if key in KEYS else "gb200-nvl72"
    config = read(
        f"{{default: {{{key}: {written}}}, pools: {{chat: {{{key}: null}}, code: {{}}}}}}"
    )
    assert config.of("chat") == read_config(None).default
    assert config.of("code") == config.default != read_config(None).default
    assert read(f"default: {{{key}: }}") == read_config(None)


@pytest.mark.parametrize("key", sorted({*Autoscale.__slots__} - {"least", "most"}))
def test_null_takes_a_default_back_of_how_a_size_follows_its_load_too(read: Any, key: str) -> None:
    config = read(f"pools: {{chat: {{autoscale: {{{key}: null, ranks: null}}}}}}")
    assert config.of("chat").autoscale == Autoscale()


@pytest.mark.parametrize("key", ["every_s", "retention_days", "default", "pools"])
def test_a_key_without_a_value_is_as_if_it_were_not_there(read: Any, key: str) -> None:
    assert read(f"{key}:") == read_config(None)


def test_what_is_optimized_for_follows_from_the_settings(read: Any) -> None:
    objective = read(
        "default: {phase: decode, dispatch: dedup, survive_node: true, horizon_s: 9, max_moved: 0}"
    ).default.objective
    assert (objective.tokens_per_gpu, objective.dispatch) == (128, "dedup")
    assert (objective.survive_node, objective.horizon_s, objective.max_moved) == (True, 9.0, 0.0)


@pytest.mark.parametrize(
    ("hours", "hour", "minute", "is_open"),
    [
        ("22:00-06:00", 21, 59, False),
        ("22:00-06:00", 22, 0, True),
        ("22:00-06:00", 0, 0, True),
        ("22:00-06:00", 5, 59, True),
        ("22:00-06:00", 6, 0, False),
        ("09:30-17:00", 9, 29, False),
        ("09:30-17:00", 9, 30, True),
        ("09:30-17:00", 17, 0, False),
        (" 9:30 - 17:00 ", 12, 0, True),
    ],
)
def test_changes_begin_in_their_hours_only(
    read: Any, hours: str, hour: int, minute: int, is_open: bool
) -> None:
    why = read(f"default: {{hours: ['{hours}']}}").default.closed(at(hour, minute))
    assert (why == "") is is_open
    assert is_open or "outside the hours of change" in why


def test_one_of_several_hours_is_enough_and_all_are_named(read: Any) -> None:
    policy = read("default: {hours: ['01:00-02:00', '23:30-00:15']}").default
    assert [bool(policy.closed(at(*time))) for time in ((1, 30), (0, 14), (12, 0))] == [0, 0, 1]
    assert "01:00-02:00, 23:30-00:15 UTC" in policy.closed(at(12))


def test_no_bytes_a_minute_is_a_freeze(read: Any) -> None:
    assert "frozen" in read("default: {bytes_per_minute: 0}").default.closed(at(12))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("default: {modus: advisory}", r"default.modus: .*.mode.*line 1.*see docs/controller.md"),
        ("pool: {}", r"pool: there is no such key: did you mean .pools."),
        ("pools: {chat: {mode: auto}}", r"pools.chat.mode: .*'advisory' or 'automatic' .*'auto'"),
        ("default: {dispatch: none}", r"dispatch: .*'allgather', 'dedup' or 'coherent'"),
        ("default: {phase: both}", r"'prefill', 'decode' or 'mixed'"),
        ("default: {window_s: 0}", r"default.window_s: .*greater than 0 \(it has 0\)"),
        ("default: {window_s: .inf}", r"default.window_s: .*finite number"),
        ("default: {horizon_s: .nan}", r"default.horizon_s: .*finite number"),
        ("every_s: -1", r"every_s: .*greater than 0 \(it has -1\)"),
        ("retention_days: forever", r"retention_days: .*valid number.*'forever'"),
        ("default: {least_tokens: 0}", r"least_tokens: .*greater than or equal to 1"),
        ("default: {confirmations: 1.5}", r"confirmations: .*integer.*1.5"),
        ("default: {cooldown_s: -1}", r"cooldown_s: .*greater than or equal to 0"),
        ("default: {max_moved: 1.1}", r"max_moved: .*less than or equal to 1 \(it has 1.1\)"),
        ("default: {guard: 1.5}", r"default.guard: .*less than or equal to 1 \(it has 1.5\)"),
        ("default: {guard: .nan}", r"default.guard: .*finite number"),
        ("pools: {a: {overlap: -0.1}}", r"pools.a.overlap: .*greater than or equal to 0"),
        ("default: {horizon_s: 1.0e+13}", r"default.horizon_s: .*less than or equal to 1"),
        ("default: {bytes_per_minute: -1}", r"bytes_per_minute: .*greater than or equal to 0"),
        ("default: {rank_bytes: 0}", r"rank_bytes: .*greater than or equal to 1"),
        ("default: {scratch_slots: -1}", r"scratch_slots: .*greater than or equal to 0"),
        ("default: {nodes: 0}", r"nodes: .*greater than or equal to 1"),
        ("default: {hours: '22:00-06:00'}", r"hours: .*valid list"),
        ("default: {hours: ['22-6']}", r"hours '22-6': write them as 22:00-06:00, in UTC"),
        ("default: {hours: ['24:00-06:00']}", r"hours '24:00-06:00': write them as"),
        ("default: {hours: ['01:00-02:00-03:00']}", r"write them as 22:00-06:00"),
        ("default: {hours: ['06:00-06:00']}", r"'06:00-06:00' end as they begin: leave them out"),
        ("default: {optimizer: jont}", r"unknown optimizer 'jont'.*joint"),
        ("default: {topology: h1000}", r"unknown topology 'h1000'.*h100"),
        ("default: {topology: gone.yaml}", r"gone.yaml"),
        ("pools: {chat: }", r"pools.chat: .*valid dictionary"),
        ("[1, 2]", r"the file: .*valid dictionary"),
        ("default: {", r"serve.yaml is not YAML: "),
        ("default: {}\ndefault: {}", r"a key that is there twice \(line 2\)"),
        ("pools: {chat: {mode: automatic, mode: advisory}}", r"a key that is there twice"),
    ],
)
def test_what_makes_no_sense_is_told_on_one_line(read: Any, text: str, why: str) -> None:
    with pytest.raises(PlacerError, match=why) as caught:
        read(text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlacerError, match=r"gone\.yaml"):
        read_config(tmp_path / "gone.yaml")


def test_a_pool_has_of_its_traces_what_it_says_and_the_rest_from_the_default(read: Any) -> None:
    assert read_config(None).of("any").traces == Traces(0, 900.0, False)
    config = read(
        "default: {traces: {requests: 100, token_ids: true}}\n"
        "pools: {a: {traces: {kept_s: 60}}, b: {traces: {requests: null}}, c: {traces: null}}"
    )
    assert config.of("other").traces == Traces(100, 900.0, True)
    assert config.of("a").traces == Traces(100, 60.0, True)
    assert config.of("b").traces == Traces(0, 900.0, True)
    assert config.of("c").traces == Traces()


@pytest.mark.parametrize(
    "text", ["{requests: -1}", "{requests: 1000000}", "{kept_s: 0}", "{to: x}"]
)
def test_traces_that_cannot_be_are_refused(read: Any, text: str) -> None:
    with pytest.raises(PlacerError, match=r"traces.*see docs/controller\.md"):
        read(f"default: {{traces: {text}}}")


def test_a_size_follows_its_load_only_where_that_is_said(read: Any) -> None:
    config = read(
        "pools: {chat: {autoscale: {policy: horizontal, requests: 4, ranks: [2, 8], max_gpus: 6}}}"
    )
    meant = Autoscale("horizontal", least=2, most=8, max_gpus=6, requests=4.0)
    assert (config.of("chat").autoscale, config.of("code").autoscale) == (meant, None)
    for text, why in (
        ("{ranks: [8, 2]}", "ranks are 8 to 2: write the smaller first"),
        ("{ranks: [0, 2]}", "ranks"),
        ("{ranks: [1, 1000000000]}", "less than or equal to 4096"),
        ("{policy: best}", "policy"),
        ("{attainment: 90}", "attainment"),
    ):
        with pytest.raises(PlacerError, match=why):
            read(f"default: {{autoscale: {text}}}")
