"""The page: what it is, and its parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from simulations.results.section import Section, markdown

INTRO = """# Results

Made by `{command}`, from scratch. Every table says the command that makes it alone, and of every
figure how it was made:

- **predicted**: by models of hardware, engines and traffic, fitted to nothing that stands beside it
- **calibrated**: a constant was chosen so that it comes out as published; alone it shows nothing
- **measured**: on recorded routing, or counted

DATA is a folder with recordings, as [benchmarks.md](benchmarks.md) names them; without it their
tables are left out. What is modelled and how is in [simulations.md](simulations.md), what figures
mean in [metrics.md](metrics.md). No figure of ours on this page is of a GPU.
"""


def written(
    parts: Mapping[str, Sequence[Section]], pictures: Sequence[str], target: Path, command: str
) -> tuple[str, Mapping[Path, str]]:
    """The page, and its pictures by their files. pictures: of the sections that have a figure, in
    their order; none: without them"""
    folder = target.with_suffix("")
    waiting, files, text = iter(pictures), {}, [INTRO.format(command=command)]
    for title, sections in parts.items():
        text.append(f"## {title}\n")
        for section in sections:
            place = None
            if section.figure is not None and (picture := next(waiting, None)) is not None:
                files[folder / f"{section.file}.svg"] = picture
                place = f"{folder.name}/{section.file}.svg"
            text.append(markdown(section, place))
    return "\n".join(text), files
