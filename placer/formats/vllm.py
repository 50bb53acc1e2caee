"""vllm: the map that vLLM's EPLB keeps, ``EplbState.physical_to_logical_map``, as JSON.

[layers with experts][physical experts] of logical ids, ranks end to end, -1 for an empty slot.
The file does not say how many ranks there are.
"""

import json

from placer.files.documents import of_json
from placer.formats.parsing import Map, rows_of
from placer.model import ModelShape
from placer.placement import Placement


def dump(placement: Placement, model: ModelShape | None) -> str:
    return json.dumps(placement.physical_to_logical.tolist())


def parse(text: str, model: ModelShape | None) -> Map:
    return Map(rows_of(of_json(text, "the file"), "the file"))
