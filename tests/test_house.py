"""What docs/ARCHITECTURE.md and CONTRIBUTING.md say of the sources holds."""

import ast
import re
from collections import Counter
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
PRODUCT = ("placer", "controller")
GENERATED = re.compile(r"_pb2(_grpc)?\.py$")
COMPILED = "placer/optimizers/joint/search.py"  # kernels, which Numba wants in one file
A_VERB_EACH = "placer/cli"


def modules(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in found if not GENERATED.search(path.name)]


def lines(path: Path) -> int:
    return len((ROOT / path).read_text().splitlines())


def test_the_map_names_every_module() -> None:
    _, drawing, _ = (ROOT / "docs/ARCHITECTURE.md").read_text().split("```", 2)
    named = set(re.findall(r"\w+", drawing))
    assert not [
        str(path)
        for path in modules(*PRODUCT, "simulations")
        if path.stem not in {*named, "__init__", "__main__"} and str(path.parent) != A_VERB_EACH
    ]


def test_files_are_short() -> None:
    assert {str(path) for path in modules(*PRODUCT, "simulations") if lines(path) > 300} == {
        COMPILED
    }
    assert [str(path) for path in modules("tests") if lines(path) > 400] == []
    assert median(map(lines, modules(*PRODUCT))) < 120


def test_rooms_are_small() -> None:
    """In what serves, not in what plans."""
    found = modules("controller", "placer/agent")
    sizes = Counter(str(path.parent) for path in found if path.stem != "__init__")
    assert {folder: size for folder, size in sizes.items() if size > 12} == {}


def test_a_class_says_what_it_is() -> None:
    """And not whose: "Of one worker"."""
    assert not [
        f"{path} {node.name}"
        for path in modules(*PRODUCT, "simulations")
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ClassDef)
        and re.match("(Of|By|In|On|At|Whose|Those of) ", ast.get_docstring(node) or "")
    ]
