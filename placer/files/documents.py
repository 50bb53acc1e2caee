"""JSON and YAML that anybody may have written: values, or one FileError.

Errors say where, never what: a file may hold tokens.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Any, ClassVar

import yaml

from placer.errors import FileError

DEEPEST = 64  # lists and objects inside each other
MOST_NODES = 2**16  # of a YAML document, its aliases written out: read within a second
YAML_LIMIT = 2**22  # characters


class _Unique:
    """Keys are words, and each is there once, however it is written."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        words, values = set(), set()
        for key, _ in getattr(node, "value", ()):
            if not isinstance(key, yaml.ScalarNode):
                raise _fault("a key that is no word", key)
            value = key.value
            if not key.tag.endswith(":merge"):
                value = self.construct_object(key)  # type: ignore[attr-defined]
            if key.value in words or value in values:
                raise _fault("a key that is there twice", key)
            words.add(key.value)
            values.add(value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)  # type: ignore[misc]
        return found


class _Loader(_Unique, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Values as JSON has them, and text; a date or a time of day is text, too."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: [(tag, sign) for tag, sign in known if tag.endswith((":null", ":bool", ":merge"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_DIGITS = "(0|[1-9][0-9_]{0,30})"
for _tag, _signs in (
    ("int", rf"[-+]?{_DIGITS}|0x[0-9a-fA-F]{{1,16}}"),
    ("float", rf"[-+]?({_DIGITS}(\.[0-9]{{0,30}})?|\.[0-9]{{1,30}})([eE][-+]?[0-9]{{1,4}})?"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_signs})$"), list("-+.0123456789")
    )


class _TextLoader(_Unique, getattr(yaml, "CBaseLoader", yaml.BaseLoader)):  # type: ignore[misc]
    """Every value is text, also what looks like a number."""


def of_yaml(text: str, name: str, as_text: bool = False) -> Any:
    """What a YAML (or JSON) text holds. Raises FileError, which calls the text ``name``.

    as_text: every value is text, also what looks like a number
    """
    if len(text) > YAML_LIMIT:
        raise FileError(
            f"{name} has {len(text)} characters of YAML, the limit is {YAML_LIMIT}"
            ": is it the right file?"
        )
    loader = _TextLoader if as_text else _Loader
    try:
        _check_size(yaml.parse(text, Loader=loader))
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        why = getattr(error, "problem", None) or "it has characters that no text has"
        raise FileError(f"{name} is not YAML: {why}{where}") from None


def of_json(text: str, name: str, finite: bool = True) -> Any:
    """What a JSON text holds. Raises FileError, which calls the text ``name``.

    finite: refuse NaN and infinity, which JSON does not have but Python writes
    """
    numbers: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
    try:
        return json.loads(text, object_pairs_hook=_object, **numbers)
    except RecursionError as error:
        raise FileError(f"{name} is nested too deep: is it the right file?") from error
    except ValueError as error:
        raise FileError(f"{name} is not JSON ({error}): is it the right file?") from error


def _fault(problem: str, at: Any) -> yaml.MarkedYAMLError:
    """at: a node or an event"""
    return yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)


def _check_size(events: Iterable[Any]) -> None:
    """Before values are made: how deep it goes, and how large with its aliases written out."""
    sizes: dict[str, int] = {}
    open_: list[list[Any]] = [[None, 0]]  # of what is not closed yet: anchor, nodes

    for event in events:
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise _fault("an alias of nothing, or of what it stands in", event)
            open_[-1][1] += sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            if getattr(event, "tag", None) is not None:
                raise _fault("tags (!) are not read: write plain values", event)
            if isinstance(event, yaml.ScalarEvent):
                sizes |= {event.anchor: 1} if event.anchor else {}
                open_[-1][1] += 1
            else:
                open_.append([event.anchor, 1])
                if len(open_) > DEEPEST:
                    raise _fault(f"more than {DEEPEST} levels inside each other", event)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
            sizes |= {anchor: size} if anchor else {}
            open_[-1][1] += size
        if open_[-1][1] > MOST_NODES:
            raise _fault(f"more than {MOST_NODES} values, aliases written out", event)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number that is not finite")
    return value
