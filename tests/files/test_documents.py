"""JSON and YAML of strangers: values, or one line."""

import math

import pytest

from placer.errors import FileError
from placer.files.documents import DEEPEST, of_json, of_yaml


def test_yaml_has_the_values_of_json_and_dates_and_times_are_text() -> None:
    text = "{a: 1, b: 1e6, c: 1_000, d: 2024-01-02, e: 22:00:01, f: yes, g: ~, h: .inf, i: 0x10}"
    assert of_yaml(text, "it") == {
        "a": 1, "b": 1e6, "c": 1000, "d": "2024-01-02", "e": "22:00:01", "f": True, "g": None,
        "h": math.inf, "i": 16,
    }  # fmt: skip
    assert of_yaml(text, "it", as_text=True)["a"] == "1"
    with pytest.raises(FileError, match="a key that is there twice"):
        of_yaml("{a: 1, a: 2}", "it", as_text=True)


def test_an_alias_stands_for_what_it_names() -> None:
    text = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}"
    assert of_yaml(text, "it") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


def doubling(first: str, second: str) -> str:
    """40 lines, each twice the one before: a bomb of 2^40 values."""
    lines = [second.format(at=at, before=at - 1) for at in range(1, 41)]
    return "\n".join([first, *lines])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "it is not YAML: did not find expected node content (line 2)"),
        ("a: 1\nb: 2\na: 3", "it is not YAML: a key that is there twice (line 3)"),
        ("a: {b: [{c: 1, 'c': 2}]}", "it is not YAML: a key that is there twice (line 1)"),
        ("16: 1\n0x10: 2", "it is not YAML: a key that is there twice (line 2)"),
        ("yes: 1\n\ntrue: 2", "it is not YAML: a key that is there twice (line 3)"),
        ("? [a]\n: b", "a key that is no word (line 1)"),
        ("? {a: b}\n: b", "a key that is no word (line 1)"),
        ("a: !!timestamp 2024-13-45", "tags (!) are not read: write plain values (line 1)"),
        ("a: !!python/object/apply:os.system [true]", "tags (!) are not read"),
        ("[" * 100_000, f"more than {DEEPEST} levels inside each other"),
        ("- " * 100_000, f"more than {DEEPEST} levels inside each other"),
        (doubling("k0: &k0 [x]", "k{at}: &k{at} [*k{before}, *k{before}]"), "aliases written out"),
        (doubling("k0: &k0 {x: 1}", "k{at}: &k{at} {{<<: [*k{before}, *k{before}]}}"), "aliases"),
        ("a: &a [*a]", "an alias of nothing, or of what it stands in"),
        ("a: *b", "an alias of nothing, or of what it stands in"),
        ("<<: [1]", "expected a mapping for merging"),
        ("a: \x00", "characters that no text has"),
        ("a: \ud800", "characters that no text has"),
        ("--- a\n--- b", "but found another document"),
        ("[" + "1, " * 2**21, "characters of YAML, the limit is"),
    ],
)
def test_what_is_wrong_with_yaml_is_one_line(text: str, message: str) -> None:
    with pytest.raises(FileError) as caught:
        of_yaml(text, "it")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_without_end_stay_text() -> None:
    assert of_yaml("9" * 5000, "it") == "9" * 5000
    assert of_yaml(":".join(["59"] * 5000), "it").startswith("59:59")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "it is nested too deep"),
        ('{"a":' * 100_000, "it is nested too deep"),
        ("9" * 5000, "it is not JSON (Exceeds the limit (4300 digits)"),
        ("[NaN]", "a number that is not finite"),
        ("[1e999]", "a number that is not finite"),
        ('{"a": 1, "a": 2}', "a key is there twice"),
        ("", "it is not JSON (Expecting value"),
    ],
)
def test_what_is_wrong_with_json_is_one_line(text: str, message: str) -> None:
    with pytest.raises(FileError) as caught:
        of_json(text, "it")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_configs_may_hold_infinity() -> None:
    assert of_json("[0.0, Infinity]", "it", finite=False) == [0.0, math.inf]
