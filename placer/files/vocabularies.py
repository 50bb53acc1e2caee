"""What tells one vocabulary from another: the hash of its tokenizer's file."""

from pathlib import Path

from placer.files.atomic import sha256

FILE = "tokenizer.json"


def vocabulary_of(tokenizer: Path | None) -> str:
    """Of a tokenizer.json, or the folder that it is in; empty without one. Raises FileError."""
    if tokenizer is None:
        return ""
    return f"sha256:{sha256(tokenizer / FILE if tokenizer.is_dir() else tokenizer)}"
