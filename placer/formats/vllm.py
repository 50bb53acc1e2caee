"""vllm: the map that vLLM's EPLB keeps, ``EplbState.physical_to_logical_map``, as JSON.

[layers with experts][physical experts] of logical ids, ranks end to end, -1 for an empty slot.
The file does not say how many ranks there are.
"""

import json

from placer.files.documents import of_json
from placer.formats.parsing import Map, rows_of
from placer.placement import Placement


def dump(placement: Placement, first_moe_layer: int) -> str:
    return json.dumps(placement.physical_to_logical.tolist())


def parse(text: str, first_moe_layer: int) -> Map:
    return Map(rows_of(of_json(text, "the file"), "the file"))
