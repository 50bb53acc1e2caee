"""How much token tables foretell, on sequences that they were not made from."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from bench.matrix import DATA, TINY
from bench.timing import console
from placer import model, topology
from placer.files.routing import read_trace
from placer.model import ModelShape
from placer.objective import Objective
from placer.plan import Solution
from placer.planner import solve
from placer.prediction.predict import Prediction, predict
from placer.problem import Problem
from placer.profile import of_trace
from placer.tables import Tables, counted, tables_of
from placer.trace import Trace, concatenate

GPUS = 4
EXAMPLE = ModelShape("tiny_moe", 6, 16, 2, 128, 64)


@dataclass(frozen=True)
class Case:
    name: str
    shape: ModelShape
    fit: Trace
    judged: Trace


def run() -> None:
    table = Table(
        title=f"experts foretold (top-k recall, mean of layers), and LAR over 1/G on {GPUS} GPUs; "
        "judged on what the tables were not made from; * keyed on the first layer's experts",
        title_justify="left",
    )
    table.add_column("")
    names = ("prior", "1 token", "2", "3", "4", "likely: precision", "F1", "next layer", "top-2k")
    for name in (*names, "aligned LAR", "fullest rank", "SRP(16)", "SCH(16, 2)"):
        table.add_column(name, justify="right")
    batches = Table(title="experts a layer reads for a batch", title_justify="left")
    for name in ("", "batch", "first in, first out", "table", "oracle"):
        batches.add_column(name, justify="right")
    for case in cases():
        tables = made(case.shape, case.fit)
        found = predict(case.judged, tables)
        name = f"{case.name}*" if found.is_upper_bound else case.name
        table.add_row(name, *_cells(found))
        for one in found.batches:
            figures = (one.fifo, one.table, one.oracle)
            batches.add_row(name, str(one.batch), *(f"{figure:.1f}" for figure in figures))
    console.print(table)
    console.print(batches)


def cases() -> Iterator[Case]:
    tiny = [read_trace(path, EXAMPLE) for path in sorted(TINY.glob("*.npz"))]
    yield Case("example", EXAMPLE, *concatenate(tiny).split(0.5, seed=0))
    for at, path in enumerate(sorted(TINY.glob("*.npz"))):
        others = concatenate([trace for one, trace in enumerate(tiny) if one != at])
        yield Case(f"example, {path.stem} unseen", EXAMPLE, others, tiny[at])
    for folder, preset in (
        ("deepseek-v2-lite-routing", "deepseek-v2-lite"),
        ("gpt-oss-20b-decode", "gpt-oss-20b"),
    ):
        shape = model.preset(preset)
        paths = sorted((DATA / folder).glob("*.npz"))
        paths = [path for path in paths if not path.stem.endswith(".prompts")]
        if not paths:
            console.print(f"prediction: {preset} left out, no traces in {DATA}")
            continue
        whole = concatenate([read_trace(path, shape) for path in paths])
        yield Case(preset, shape, *whole.split(0.5, seed=0))


def made(shape: ModelShape, fit: Trace) -> Tables:
    """For the placement that joint makes of the same half, to send tokens as seldom as may be."""
    problem = Problem(
        model=shape,
        topology=topology.preset("h100").resized(GPUS),
        profile=of_trace(fit),
        slots=shape.experts,
        objective=Objective("dedup"),
        trace=fit,
    )
    solution = solve(problem, "joint")
    assert isinstance(solution, Solution)
    return tables_of(counted(fit, solution.placement), shape)


def _cells(found: Prediction) -> list[str]:
    assert found.next_top_k is not None
    assert found.next_top_2k is not None
    shuffle = found.shuffle
    srp = found.srp[16]
    return [
        *(f"{one.recall:.2f}" for one in found.top_k),
        f"{found.likely.precision or 0:.2f}", f"{found.likely.f1:.2f}",
        f"{found.next_top_k.recall:.2f}", f"{found.next_top_2k.recall:.2f}",
        f"{shuffle.aligned.mean() * found.gpus:.2f}x", f"{shuffle.aligned_imbalance.max():.2f}",
        "-" if srp is None else f"{srp:.2f}", f"{found.sch[16, 2.0]:.2f}",
    ]  # fmt: skip
