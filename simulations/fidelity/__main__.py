"""python -m simulations.fidelity: the engine model beside real engines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

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
from simulations.fidelity.seen import Compared, Seen, compared, joined, ratio

CONTEXT = 200  # tokens of a prompt and its answer
RANKS = 2
KNOWN, OTHER, HOT, ALONE = "known", "other arrivals", "hot experts on one rank", "one rank"
AGAIN = (1, 2)  # seeds of prompts, for a fresh engine each
TURN_S = 2.0  # of one engine; then it is another's: what the machine does meanwhile hits them alike
Server: TypeAlias = local.Server | vllm.Server


class Case(NamedTuple):
    """What an engine is to do. parts: of the requests, one after another"""

    placement: Placement
    parts: Sequence[Arrivals]


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
            rows = [*_local(model, shape, per_s, seconds), *scaling(model)]
        else:
            rows = list(_vllm(python, model, shape, per_s, seconds))
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


def _local(model: Path, shape: ModelShape, per_s: float, seconds: float) -> Iterator[Compared]:
    start = partial(local.Server, model)
    cases = _cases(shape, per_s, seconds)
    with start(cases[KNOWN].placement) as one:
        load = one.serve(cases[KNOWN].parts[0], seed=0).load
    cases[HOT] = Case(_hot(load, shape), cases[OTHER].parts)
    engine = Engine(shape, local.BUDGET, local.PROMPTS)
    yield from _judged(engine, cases, _in_turns(start, cases))


def _vllm(
    python: Path, model: Path, shape: ModelShape, per_s: float, seconds: float
) -> Iterator[Compared]:
    """No hot experts: its EPLB comes to no map that is given, without slots to spare."""
    cases, engine = _cases(shape, per_s, seconds), Engine(shape, vllm.BUDGET, is_split=True)
    start = partial(vllm.Server, python, model)
    yield from _judged(engine, cases, _in_turns(start, cases))


def _in_turns(
    start: Callable[[Placement], Server], cases: Mapping[str, Case]
) -> dict[str, list[Seen]]:
    """What fresh engines did, all of which live at once. Two of a kind are as far apart in time as
    two kinds are, so that the host's pace is in what they differ by as well."""
    turns = [(name, again) for again in AGAIN for name in cases]
    servers: dict[tuple[str, int], Server] = {}
    with ExitStack() as stack:
        for name, again in turns:
            servers[name, again] = start(cases[name].placement)
            stack.push(servers[name, again])
        for at in range(max(len(case.parts) for case in cases.values())):
            for name, again in turns if at % 2 else turns[::-1]:
                for part in cases[name].parts[at : at + 1]:
                    servers[name, again].serve(part, 10 * at + again)
        return {name: [servers[name, again].seen() for again in AGAIN] for name in cases}


def _judged(
    engine: Engine, cases: Mapping[str, Case], runs: Mapping[str, Sequence[Seen]]
) -> Iterator[Compared]:
    known = joined(runs[KNOWN])
    constants = fitted(engine, known)
    told = ", ".join(f"{name} {seconds:.2e}" for name, seconds in asdict(constants).items())
    out.print(f"fitted on {len(known.first_s)} requests to {RANKS} ranks: {told}")
    ours = {
        name: joined(
            [predicted(engine, constants, case.placement, part, known.load) for part in case.parts]
        )
        for name, case in cases.items()
    }
    for name in runs:
        if name != KNOWN:
            yield from compared(name, ours[name], runs[name])
    if HOT in runs:
        found = (ours[HOT], ours[OTHER]), (runs[HOT], runs[OTHER])
        yield ratio(f"{HOT}: steps over even ones", *found)


def _cases(shape: ModelShape, per_s: float, seconds: float) -> dict[str, Case]:
    def parts(share: float, prompt: int, output: int, seed: int) -> list[Arrivals]:
        """Lengths are log-normal."""
        whole = diurnal(per_s * share, seconds, 0.0, 0.0, prompt, output, CONTEXT, seed)
        begins = np.arange(0.0, seconds, TURN_S)
        found = [whole.between(begin, begin + TURN_S) for begin in begins]
        return [part for part in found if len(part)]

    even, alone = (linear(shape.layers, shape.experts, shape.experts, n) for n in (RANKS, 1))
    return {
        KNOWN: Case(even, parts(1.0, 24, 24, seed=1)),
        OTHER: Case(even, parts(0.5, 40, 32, seed=2)),
        ALONE: Case(alone, parts(0.5, 24, 24, seed=3)),
    }


def _hot(load: FloatArray, shape: ModelShape) -> Placement:
    """The busier half of each layer's experts on the first rank."""
    table = np.argsort(-load, axis=1, kind="stable")
    return Placement(table.astype(np.int32), shape.experts, RANKS)


if __name__ == "__main__":
    typer.run(main)
