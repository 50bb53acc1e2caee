"""Recorded routing that several papers are measured on."""

from pathlib import Path

from placer import model
from placer.files.routing import read_trace
from placer.trace import Trace, concatenate

SHAPE = model.preset("deepseek-v2-lite")


def lite(data: Path | None) -> Trace | None:
    """DeepSeek-V2-Lite's, if the folder has it."""
    paths = sorted((data / "deepseek-v2-lite-routing").glob("*.npz")) if data else []
    return concatenate([read_trace(path, SHAPE) for path in paths]) if paths else None
