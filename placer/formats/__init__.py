"""Other engines' placement files: one format a file, one line in ``FORMATS``.

A format's ``dump`` turns a placement into the file's text, and ``parse`` the text into a Map. Both
are told the model, if it is known: some formats count the layers without experts, too. Without it
every layer is taken to have experts.
"""

from collections.abc import Callable
from dataclasses import dataclass

from placer.errors import FileError
from placer.formats import sglang, trtllm, vllm, vllm_ascend
from placer.formats.parsing import Map, other_layers
from placer.model import ModelShape
from placer.names import lookup
from placer.placement import Placement


@dataclass(frozen=True, slots=True)
class Format:
    dump: Callable[[Placement, ModelShape | None], str]
    parse: Callable[..., Map]
    has_names: bool = False  # of several maps in one file


FORMATS: dict[str, Format] = {
    "vllm": Format(vllm.dump, vllm.parse, has_names=True),
    "sglang": Format(sglang.dump, sglang.parse),
    "trtllm": Format(trtllm.dump, trtllm.parse),
    "vllm-ascend": Format(vllm_ascend.dump, vllm_ascend.parse),
}


def dump(name: str, placement: Placement, model: ModelShape | None) -> str:
    """The text of a placement file. Raises FileError if the format cannot say it."""
    chosen = lookup("format", name, FORMATS, FileError)
    if placement.empty:
        raise FileError(
            f"{name} wants an expert in every slot and the plan leaves {placement.empty} empty"
            ": plan without --uneven, or with --optimizer joint, which fills redundant slots"
        )
    return chosen.dump(placement, model)


def parse(name: str, text: str, model: ModelShape | None, which: str | None = None) -> Map:
    """The map that a file holds, the one called ``which`` of several. Raises FileError if it holds
    none, or not one of ``model``."""
    chosen = lookup("format", name, FORMATS, FileError)
    if which is not None and not chosen.has_names:
        raise FileError(f"--map {which}, but a {name} file has one map alone: leave it out")
    found = chosen.parse(text, model, *([which] if which is not None else []))
    if model is not None and len(found.rows) != model.layers:
        raise other_layers(range(len(found.rows)), model)
    return found
