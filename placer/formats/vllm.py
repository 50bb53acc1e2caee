"""vllm: the map that vLLM's EPLB keeps, ``EplbState.physical_to_logical_map``, as JSON.

[layers with experts][physical experts] of logical ids, ranks end to end, -1 for an empty slot.
The file does not say how many ranks there are.

Plugins that start vLLM from a map write it as an object with ``physical_to_logical_map`` and
perhaps ``num_logical_experts`` (``vllm_offline_eplb_physical_to_logical``), or several of these by
the model's name in ``model_maps`` (``..._by_model``); those are read as well.
"""

import json
from typing import Any

from placer.errors import FileError
from placer.files.documents import of_json
from placer.formats.parsing import Map, rows_of
from placer.model import ModelShape
from placer.placement import Placement

KEY, COUNT, BY_MODEL = "physical_to_logical_map", "num_logical_experts", "model_maps"
VERSIONS = (1, 2)


def dump(placement: Placement, model: ModelShape | None) -> str:
    return json.dumps(placement.physical_to_logical.tolist())


def parse(text: str, model: ModelShape | None, which: str | None = None) -> Map:
    """which: the name of a map, of a file with several"""
    data = of_json(text, "the file")
    if not isinstance(data, dict):
        return Map(rows_of(_only(data, which), "the file"))
    version = data.get("version", VERSIONS[0])
    if type(version) is not int or version not in VERSIONS:
        raise FileError(f"version {version!r}: placer reads {' and '.join(map(str, VERSIONS))}")
    if BY_MODEL not in data:
        return _map(_only(data, which), {})
    maps = data[BY_MODEL]
    if not isinstance(maps, dict) or not maps:
        raise FileError(f"{BY_MODEL} names no map: is it the right --format?")
    if which is None and len(maps) > 1:
        raise FileError(f"it has maps of {_names(maps)}: say which, with --map")
    if which is not None and which not in maps:
        raise FileError(f"no map of {which!r}, it has {_names(maps)}: give --map one of these")
    return _map(maps[which] if which is not None else next(iter(maps.values())), data)


def _only(data: Any, which: str | None) -> Any:
    if which is not None:
        raise FileError(f"--map {which}, but the file has one map without a name: leave it out")
    return data


def _map(data: Any, around: dict[str, Any]) -> Map:
    """Of an object, or of a plain list; ``around`` may say how many experts there are."""
    fields = data if isinstance(data, dict) else {KEY: data}
    if KEY not in fields:
        raise FileError(f"no {KEY} in the file: is it the right --format?")
    experts = fields.get(COUNT, around.get(COUNT))
    if experts is not None and (type(experts) is not int or experts < 1):
        raise FileError(f"{COUNT} is {experts!r}: it must be a whole number, 1 or more")
    return Map(rows_of(fields[KEY], KEY), experts=experts)


def _names(maps: dict[str, Any]) -> str:
    return ", ".join(map(repr, maps))
