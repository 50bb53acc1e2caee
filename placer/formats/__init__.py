"""Other engines' placement files: one format a file, one line in ``FORMATS``.

A format's ``dump`` turns a placement into the file's text, and ``parse`` the text into a Map. Both
are told the index, in the whole model, of the first layer with experts: some formats count dense
layers too.
"""

from collections.abc import Callable
from dataclasses import dataclass

from placer.errors import FileError
from placer.formats import sglang, trtllm, vllm, vllm_ascend
from placer.formats.parsing import Map
from placer.names import lookup
from placer.placement import Placement


@dataclass(frozen=True, slots=True)
class Format:
    dump: Callable[[Placement, int], str]
    parse: Callable[[str, int], Map]


FORMATS: dict[str, Format] = {
    "vllm": Format(vllm.dump, vllm.parse),
    "sglang": Format(sglang.dump, sglang.parse),
    "trtllm": Format(trtllm.dump, trtllm.parse),
    "vllm-ascend": Format(vllm_ascend.dump, vllm_ascend.parse),
}


def dump(name: str, placement: Placement, first_moe_layer: int) -> str:
    """The text of a placement file. Raises FileError if the format cannot say it."""
    chosen = lookup("format", name, FORMATS, FileError)
    if placement.empty:
        raise FileError(
            f"{name} wants an expert in every slot and the plan leaves {placement.empty} empty"
            ": plan without --uneven, or with --optimizer joint, which fills redundant slots"
        )
    return chosen.dump(placement, first_moe_layer)


def parse(name: str, text: str, first_moe_layer: int) -> Map:
    """The map that a placement file holds. Raises FileError if it is not one."""
    return lookup("format", name, FORMATS, FileError).parse(text, first_moe_layer)
