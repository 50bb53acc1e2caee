"""Text that ships with every Python, in three domains whose experts differ.

- ``prose``: the help topics that ``pydoc`` prints (reference documentation);
- ``code``: the standard library's own sources;
- ``tables``: the Unicode character database, one semicolon-separated line a character.

The bytes depend on the Python version; the committed model and traces come from 3.11.
"""

import sysconfig
import unicodedata
from pathlib import Path
from pydoc_data.topics import topics

DOMAINS = ("prose", "code", "tables")
HOLD_OUT_EVERY = 8  # every eighth document is never trained on


def documents(domain: str) -> list[bytes]:
    """The documents of one domain, in a fixed order."""
    match domain:
        case "prose":
            return [topics[name].encode() for name in sorted(topics)]
        case "code":
            return _standard_library()
        case "tables":
            return _character_blocks()
    raise ValueError(f"unknown domain {domain!r}: use one of {', '.join(DOMAINS)}")


def split(domain: str) -> tuple[bytes, list[bytes]]:
    """Training text as one run of bytes, and the held-out documents."""
    docs = documents(domain)
    held_out = docs[::HOLD_OUT_EVERY]
    training = [doc for i, doc in enumerate(docs) if i % HOLD_OUT_EVERY]
    return b"\n\n".join(training), held_out


def _standard_library() -> list[bytes]:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "site-packages", "pydoc_data", "encodings", "__pycache__"}
    files = sorted(
        path
        for path in root.rglob("*.py")
        if not skipped.intersection(path.relative_to(root).parts[:-1])
    )
    return [path.read_bytes() for path in files]


def _character_blocks(size: int = 128) -> list[bytes]:
    """Blocks of ``size`` code points below U+30000, those without a name left out."""
    blocks = []
    for start in range(0, 0x30000, size):
        lines = []
        for point in range(start, start + size):
            char = chr(point)
            if name := unicodedata.name(char, ""):
                fields = (
                    f"{point:04X}",
                    name,
                    unicodedata.category(char),
                    unicodedata.bidirectional(char),
                    unicodedata.decomposition(char),
                )
                lines.append(";".join(fields))
        if lines and "CJK UNIFIED" not in lines[0] and "HANGUL SYLLABLE" not in lines[0]:
            blocks.append("\n".join(lines).encode())
    return blocks
