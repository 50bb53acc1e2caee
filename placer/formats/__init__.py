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
from placer.placement import EMPTY, Placement


@dataclass(frozen=True, slots=True)
class Format:
    dump: Callable[[Placement, int], str]
    parse: Callable[..., Map]
    knows_empty_slots: bool = False
    has_names: bool = False  # of several maps in one file


FORMATS: dict[str, Format] = {
    "vllm": Format(vllm.dump, vllm.parse, knows_empty_slots=True, has_names=True),
    "sglang": Format(sglang.dump, sglang.parse),
    "trtllm": Format(trtllm.dump, trtllm.parse),
    "vllm-ascend": Format(vllm_ascend.dump, vllm_ascend.parse),
}


def dump(name: str, placement: Placement, first_moe_layer: int) -> str:
    """The text of a placement file. Raises FileError if the format cannot say it."""
    chosen = lookup("format", name, FORMATS, FileError)
    if (placement.physical_to_logical == EMPTY).any() and not chosen.knows_empty_slots:
        raise FileError(f"{name} has no empty slots and the plan does: fill every slot first")
    return chosen.dump(placement, first_moe_layer)


def parse(name: str, text: str, first_moe_layer: int, which: str | None = None) -> Map:
    """The map that a placement file holds, the one called ``which`` of several. Raises FileError if
    it is not one."""
    chosen = lookup("format", name, FORMATS, FileError)
    if which is None:
        return chosen.parse(text, first_moe_layer)
    if not chosen.has_names:
        raise FileError(f"--map {which}, but a {name} file has one map alone: leave it out")
    return chosen.parse(text, first_moe_layer, which)
