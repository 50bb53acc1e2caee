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
from placer.placement import Placement
from placer.plan import Solution
from placer.planner import solve
from placer.prediction.predict import Prediction, predict
from placer.prediction.recall import guesses
from placer.problem import Problem
from placer.profile import of_trace
from placer.tables import counted, tables_of, token_identity
from placer.tables.experts import ExpertTables, expert_tables
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
    table = Table(title="experts foretold: top-k recall, mean of layers", title_justify="left")
    table.add_column("* by the first layer's experts", no_wrap=True)
    for name in ("prior", "1 token", "2", "3", "4", "likely", "F1", "next layer", "top-2k"):
        table.add_column(name, justify="right", no_wrap=True)
    uses = Table(title=f"what for; {GPUS} GPUs", title_justify="left")
    for name in ("", "LAR of 1/G", "aligned", "fullest rank", "SRP(16)", "SCH(16, 2)"):
        uses.add_column(name, justify="right", no_wrap=True)
    batches = Table(title="experts a layer reads for a batch", title_justify="left")
    for name in ("", "batch", "first in, first out", "table", "oracle"):
        batches.add_column(name, justify="right")
    for case in cases():
        counts = counted(case.fit, placed(case.shape, case.fit))
        tables = tables_of(counts, case.shape)
        found = predict(case.judged, tables)
        name = f"{case.name}*" if found.is_upper_bound else case.name
        table.add_row(name, *_foretold(found))
        uses.add_row(name, *_uses(found))
        every = expert_tables(counts.table, counts.longer, least=1)
        table.add_row("  with contexts of one request", *_recalls(case.judged, every))
        for one in found.batches:
            figures = (one.fifo, one.table, one.oracle)
            batches.add_row(name, str(one.batch), *(f"{figure:.1f}" for figure in figures))
    for found_table in (table, uses, batches):
        console.print(found_table)


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


def placed(shape: ModelShape, fit: Trace) -> Placement:
    """What joint makes of the same half, to send tokens as seldom as may be."""
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
    return solution.placement


def _recalls(trace: Trace, experts: ExpertTables) -> list[str]:
    tokens = token_identity(trace)
    rows = [experts.rows(tokens, trace.seq_lens, order) for order in range(experts.orders + 1)]
    return [f"{guesses(trace, experts, row, only_likely=False).recall:.2f}" for row in rows]


def _foretold(found: Prediction) -> list[str]:
    """Of the likely ones their precision and F1."""
    assert found.next_top_k is not None
    assert found.next_top_2k is not None
    likely, ahead = found.likely, (found.next_top_k, found.next_top_2k)
    figures = [one.recall for one in found.top_k] + [likely.precision or 0, likely.f1]
    return [f"{figure:.2f}" for figure in (*figures, *(one.recall for one in ahead))]


def _uses(found: Prediction) -> list[str]:
    shuffle, srp = found.shuffle, found.srp[16]
    return [
        f"{shuffle.wished.mean() * found.gpus:.2f}x", f"{shuffle.aligned.mean() * found.gpus:.2f}x",
        f"{shuffle.aligned_imbalance.max():.2f}",
        "-" if srp is None else f"{srp:.2f}", f"{found.sch[16, 2.0]:.2f}",
    ]  # fmt: skip
