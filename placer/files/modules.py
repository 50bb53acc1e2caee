"""The bits of an expert's matrices, by what a quantization says of modules' names."""

import re
from collections.abc import Iterable
from fnmatch import translate

PLAIN = 16.0
EVERYTHING = "re:"
MOST_EXPRESSIONS, MOST_REPEATS = 1000, 8

# What engines call the block that experts stand in, and an expert's matrices.
BLOCKS = ("mlp", "block_sparse_moe", "feed_forward", "ffn", "mixer", "moe")
MATRICES = {"gate": ("gate_proj", "w1"), "up": ("up_proj", "w3"), "down": ("down_proj", "w2")}
PREFIXES = (
    "model.",
    "language_model.model.",
    "model.language_model.",
    "thinker.model.",
    "backbone.",
    "",
)
# Modules by name, as lists of them are written, and their bits; the first that fits counts.
Settings = list[tuple[str, float]]


class Finder:
    """What the first setting that fits says of a module."""

    def __init__(self, settings: Settings) -> None:
        self.of_name: dict[str, tuple[int, float]] = {}
        self.expressions: list[tuple[int, re.Pattern[str], str | None, float]] = []
        for at, (pattern, bits) in enumerate(settings):
            if (expression := _expression(pattern)) is None:
                name = pattern[max(pattern.find("layers."), 0) :]
                self.of_name.setdefault(name, (at, bits))
            else:
                number = re.search(r"layers\\?\.(\d+)\\?\.", pattern)
                layer = number[1] if number else None
                self.expressions.append((at, expression, layer, bits))
        if len(self.expressions) > MOST_EXPRESSIONS:
            raise ValueError(f"{len(self.expressions)} expressions")

    def bits(self, layer: int, matrices: Iterable[str]) -> float:
        """Of an expert's matrix, by its names; PLAIN if no setting fits."""
        blocks = [f"layers.{layer}.{block}.experts" for block in BLOCKS]
        modules = blocks + [f"{block}.0.{matrix}" for block in blocks for matrix in matrices]
        found = [self.of_name[name] for name in _parts(modules) if name in self.of_name]
        full = [prefix + module for prefix in PREFIXES for module in modules]
        for at, expression, only, bits in self.expressions:
            if only in (None, str(layer)) and any(map(expression.match, full)):
                found.append((at, bits))
                break
        return min(found)[1] if found else PLAIN


def _parts(modules: Iterable[str]) -> set[str]:
    """The modules, what they are in, and what part of their names may stand for them."""
    parts = set()
    for module in modules:
        words = module.split(".")
        for end in range(1, len(words) + 1):
            parts |= {".".join(words[start:end]) for start in range(end)}
    return parts


def _expression(pattern: str) -> re.Pattern[str] | None:
    """Of a glob, or of ``re:`` and an expression; None of a plain name."""
    if not pattern.startswith("re:"):
        if not re.search(r"[*?\[]", pattern):
            return None
        return re.compile(f"{translate(pattern)}|{translate(pattern + '.*')}")
    text = re.sub(r"(\.\*)+", ".*", pattern[3:])
    if re.search(r"[*+}]\)[*+{]", text) or len(re.findall("[*+{]", text)) > MOST_REPEATS:
        raise ValueError("an expression of too many repeats")  # could take for ever
    return re.compile(text)
