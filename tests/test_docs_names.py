"""What the documents name exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])
SOURCES = ("placer", "controller", "simulations", "protos", "bench", "tests", "examples", "helm")
# Names of others: engines' and their routers' own.
OTHERS = {"init_worker_extension", "migration_scheduler"}


def code() -> set[str]:
    """All words of the sources, names of files included; options are written as parameters."""
    words: set[str] = set()
    for folder in SOURCES:
        for path in (ROOT / folder).rglob("*"):
            words |= set(re.findall(r"\w+", str(path.relative_to(ROOT))))
            if path.suffix in (".py", ".proto", ".yaml", ".j2") and path != Path(__file__):
                words |= set(re.findall(r"\w+", path.read_text()))
    for name in ("Makefile", "pyproject.toml", ".ci/run"):
        words |= set(re.findall(r"\w+", (ROOT / name).read_text()))
    return words


def named(text: str) -> list[str]:
    """Single words between backticks that can only be names: with an underscore, a capital inside,
    a file's ending or an option's dashes."""
    inline = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    tokens = re.findall(r"`([^`\s]+)`", inline)
    shape = re.compile(r"--[a-z-]+|\w*_\w+|[A-Z]\w*[a-z]+[A-Z]\w*|[\w/]+\.(py|proto|yaml|j2)")
    return [token for token in tokens if shape.fullmatch(token) and not token.startswith("_")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_names_in_backticks_exist(path: Path) -> None:
    known = code() | OTHERS
    missing = [
        token
        for token in named(path.read_text())
        for word in re.findall(r"\w+", token.removeprefix("--").replace("-", "_"))
        if word not in known
    ]
    assert not missing
