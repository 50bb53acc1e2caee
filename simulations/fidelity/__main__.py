"""python -m simulations.fidelity: the engine model beside real engines."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from placer.arrays import FloatArray
from placer.cli.console import out, stop
from placer.errors import PlacerError
from placer.files.specs import read_model
from placer.model import ModelShape
from placer.placement import Placement, linear
from simulations.arrivals import Arrivals, diurnal
from simulations.fidelity import local, vllm
from simulations.fidelity.model import Engine, fitted, predicted
from simulations.fidelity.scaling import scaling
from simulations.fidelity.seen import Compared, Seen, compared, ratio

CONTEXT = 200  # tokens of a prompt and its answer
RANKS = 2
OTHER, HOT, ALONE = "other arrivals", "hot experts on one rank", "one rank"
AGAIN = (2, 3)  # seeds of prompts, for a fresh engine each
Serve = Callable[[Placement, Arrivals, int], Seen]


def main(
    model: Annotated[Path, typer.Argument(help="A folder with a Qwen3-MoE that CPUs can serve.")],
    per_s: Annotated[float, typer.Option(help="Requests a second.")] = 4.0,
    seconds: Annotated[float, typer.Option(help="Of each run.")] = 60.0,
    python: Annotated[
        Path | None, typer.Option("--vllm", help="A Python with vLLM and placer's agent.")
    ] = None,
) -> None:
    """Fit the constants of an engine on one run, and predict others of it: by the local engine, or
    by vLLM."""
    try:
        shape = replace(read_model(str(model)), weight_bits=32)
        if python is None:
            engine, serve = Engine(shape, local.BUDGET, local.PROMPTS), partial(local.serve, model)
        else:
            engine, serve = Engine(shape, vllm.BUDGET), partial(vllm.serve, python, model)
        rows = list(_judged(engine, serve, per_s, seconds, is_local=python is None))
        if python is None:
            rows += scaling(model)
    except PlacerError as error:
        stop("usage", str(error), 2)
    shown = Table("", "predicted", "measured", "error", "two engines", "goal", "KS", "", box=None)
    for row in rows:
        ks = "" if row.ks is None else "{:.2f} ({:.2f})".format(*row.ks)
        shown.add_row(
            row.what, row.form.format(row.predicted), row.form.format(row.measured),
            f"{row.error:+.1%}", f"{row.repeated:.1%}", f"{row.goal:.1%}", ks,
            "" if row.is_within else "over",
        )  # fmt: skip
    out.print(shown)


def _judged(
    engine: Engine, serve: Serve, per_s: float, seconds: float, is_local: bool
) -> Iterator[Compared]:
    """Engines take turns, so that what the machine does meanwhile is in how much two of a kind
    differ."""
    shape = engine.shape
    even, alone = (linear(shape.layers, shape.experts, shape.experts, n) for n in (RANKS, 1))
    known = serve(even, _sizes(per_s, seconds, 24, 24, seed=1), 1)
    constants = fitted(engine, even, known)
    told = ", ".join(f"{name} {seconds:.2e}" for name, seconds in asdict(constants).items())
    out.print(f"fitted on {len(known.first_s)} requests to {RANKS} ranks: {told}")
    other, fewer = (
        _sizes(per_s / 2, seconds, *sizes, seed=seed)
        for seed, sizes in ((2, (40, 32)), (3, (24, 24)))
    )
    cases = {OTHER: (even, other), HOT: (_hot(known.load, shape), other), ALONE: (alone, fewer)}
    if not is_local:
        del cases[HOT]  # its EPLB comes to no map that is given, without slots to spare
    runs: dict[str, list[Seen]] = {name: [] for name in cases}
    for seed in AGAIN:
        for name, case in cases.items():
            runs[name].append(serve(*case, seed))
    ours = {name: predicted(engine, constants, *case, known.load) for name, case in cases.items()}
    for name in cases:
        yield from compared(name, ours[name], runs[name])
    if is_local:
        measured = runs[HOT], runs[OTHER]
        yield ratio(f"{HOT}: steps over even ones", (ours[HOT], ours[OTHER]), measured)


def _sizes(per_s: float, seconds: float, prompt: int, output: int, seed: int) -> Arrivals:
    """Lengths are log-normal."""
    return diurnal(per_s, seconds, 0.0, 0.0, prompt, output, CONTEXT, seed)


def _hot(load: FloatArray, shape: ModelShape) -> Placement:
    """The busier half of each layer's experts on the first rank."""
    table = np.argsort(-load, axis=1, kind="stable")
    return Placement(table.astype(np.int32), shape.experts, RANKS)


if __name__ == "__main__":
    typer.run(main)
