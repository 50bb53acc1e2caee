"""What is wrong with a file's keys and values, on one line: where, and what was meant."""

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from placer.names import meant

UNKNOWN, MISSING = ("extra_forbidden", "unexpected_keyword_argument"), "missing"


class _Place(NamedTuple):
    """where: keys and indices; forms: which of the forms that a value may have it was taken for;
    known: the keys that there are in place of the last"""

    where: tuple[int | str, ...]
    forms: tuple[str, ...]
    known: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Fault:
    place: _Place
    kind: str
    says: str
    given: Any


def first_fault(error: ValidationError, spec: Any = None, text: str = "") -> str:
    """The fault that tells most: of the forms that a value may have, of the nearest; a key that is
    none before one that is missing.

    spec: the type that was asked for; text: YAML or JSON that was read, whose line is told then
    """
    faults = [
        _Fault(_place(one["loc"], spec), one["type"], one["msg"].lower(), one["input"])
        for one in error.errors()
    ]
    count = {form: sum(one.place.forms == form for one in faults) for form in _forms(faults)}
    nearest = [one for one in faults if count[one.place.forms] == min(count.values())]
    first = next((one for one in nearest if one.kind in UNKNOWN), nearest[0])
    where, alike = first.place.where, [one for one in nearest if one.kind == first.kind]
    if first.kind in UNKNOWN:
        known = {key for one in alike if one.place.where == where for key in one.place.known}
        says = f"there is no such key: {meant(str(where[-1]), known)}" if known else first.says
    elif first.kind == MISSING and len(_forms(alike)) > 1:
        where = where[:-1]
        says = " or ".join(str(one.place.where[-1]) for one in alike) + " is needed"
    elif first.kind == MISSING:
        says = first.says
    else:
        says = f"{first.says} (it has {reprlib.repr(first.given)})"
    line = _line(text, where)
    told = ".".join(map(str, where)) or "the file"
    return f"{told}: {says}" + (f" (line {line})" if line else "")


def _forms(faults: Iterable[_Fault]) -> set[tuple[str, ...]]:
    return {one.place.forms for one in faults}


def _place(loc: Sequence[int | str], spec: Any) -> _Place:
    """Of pydantic's loc, in which forms stand between the keys."""
    where: list[int | str] = []
    forms: list[str] = []
    types = _choices(spec)
    known: tuple[str, ...] = ()
    for part in loc:
        keys = {key: kind for one in types for key, kind in _keys(one).items()}
        items = [kind for one in types for kind in _items(one)]
        if len(types) > 1 and part not in keys and isinstance(part, str):
            named = [one for one in types if getattr(one, "__name__", "") == part]
            forms.append(part)
            types = named or types
            continue
        where.append(part)
        known = tuple(keys)
        types = _choices(keys[part]) if part in keys else [c for i in items for c in _choices(i)]
    return _Place(tuple(where), tuple(forms), known)


def _choices(kind: Any) -> list[Any]:
    """The types of a union, but None."""
    if get_origin(kind) in (Union, UnionType):
        return [one for part in get_args(kind) for one in _choices(part)]
    if hasattr(kind, "__metadata__"):  # Annotated
        return _choices(get_args(kind)[0])
    return [] if kind in (None, type(None)) else [kind]


def _keys(kind: Any) -> dict[str, Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if is_dataclass(kind):
        return {field.name: field.type for field in fields(kind)}
    return {}


def _items(kind: Any) -> list[Any]:
    """Of the values of a mapping or a list."""
    return list(get_args(kind)[-1:]) if get_origin(kind) not in (None, Union, UnionType) else []


def _line(text: str, where: Sequence[int | str]) -> int:
    """Where the innermost key is that there is; 0 if there is none."""
    try:
        node = yaml.compose(text, Loader=yaml.CSafeLoader) if text else None
    except yaml.YAMLError:
        return 0
    line = 0
    for part in where:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = [(value, value) for value in node.value[part : part + 1]]
        else:
            found = []
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line
