"""placer whatif: other widths, redundancies, topologies, dispatch modes; and a verdict."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from placer import parallel
from placer.cli import inputs
from placer.cli.console import apart, note, out, print_json, progress, writable
from placer.errors import PlacementError
from placer.files.atomic import write_text
from placer.files.plans import read_plan
from placer.names import lookup
from placer.objective import DISPATCHES, STEP_TOKENS_PER_GPU, Dispatch, Objective
from placer.optimizers import OPTIMIZERS
from placer.report.sweep import advice_json, sweep_tables
from placer.topology import Topology
from placer.trace import told
from placer.trials import Case, Outcome, Study
from placer.whatif import advise

OBJECTIVE = Objective()


def whatif(
    traffic_files: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Traces or profiles (.npz).")
    ],
    gpus: Annotated[
        str | None, typer.Option(help="Widths, such as 8,16,32; a topology's own if left out.")
    ] = None,
    redundant: Annotated[
        str,
        typer.Option(help="Redundant slots a layer, such as 0,16,32 or 0..64 (those that fit)."),
    ] = "0",
    topology: Annotated[
        str, typer.Option(help="Presets or YAML files, separated by commas.")
    ] = inputs.DEFAULT_TOPOLOGY,
    dispatch: Annotated[
        str, typer.Option(help="allgather, dedup, coherent, separated by commas.")
    ] = "allgather",
    model: Annotated[
        str | None, typer.Option(help="Preset, YAML file or config.json of the model.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.")] = "joint",
    uneven: Annotated[
        bool,
        typer.Option(
            "--uneven", help="Let GPUs hold different numbers of a layer's experts (moetuner)."
        ),
    ] = False,
    overlap: inputs.Overlap = OBJECTIVE.overlap,
    guard: inputs.Guard = OBJECTIVE.guard,
    current: Annotated[Path | None, typer.Option(help="The plan that runs today.")] = None,
    holdout: Annotated[
        float, typer.Option(help="Share of sequences to judge on and not to plan from.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="For the hold-out and for the optimizer.", min=0)] = 0,
    ray: Annotated[
        str | None, typer.Option(help='Address of a Ray cluster; "local" starts one here.')
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Where the report goes.", callback=writable)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Compare how the same traffic would run elsewhere, and say whether to change anything.

    Plans are made on one part of the sequences and judged on the other; from a profile, on itself
    less what chance alone would win. The verdict is on knowing the traffic.
    """
    apart([html], traffic_files)
    traffic = inputs.load_traffic(traffic_files, model, holdout, seed, only_traces=False)
    running = read_plan(current) if current else None
    if running is not None and (running.placement.layers, running.placement.experts) != (
        traffic.model.layers,
        traffic.model.experts,
    ):
        raise PlacementError(
            f"the current plan has {running.placement.shape} but {traffic.model.name} has "
            f"{traffic.model.dims}: give the plan that runs it"
        )
    study = Study(
        model=traffic.model,
        profile=traffic.profile,
        objective=Objective(
            tokens_per_gpu=STEP_TOKENS_PER_GPU[traffic.profile.phase],
            uneven=uneven,
            overlap=overlap,
            guard=guard,
        ),
        holdout=traffic.holdout,
        current=running.placement if running else None,
        runs_on=running.topology if running else None,
        optimizer=optimizer,
        seed=seed,
    )
    cases = [
        Case(where, extra, how)
        for where, how in product(_topologies(topology, gpus), _dispatches(dispatch))
        for extra in _redundancies(redundant, study.model.experts, where.gpus)
    ]
    place = parallel.ray_cluster(ray) if ray else parallel.cores()
    with place as over, progress(f"planning {len(cases)} cases", len(cases)) as bar:

        def watched(
            function: Callable[[Case], Outcome], every: Iterable[Case]
        ) -> Iterator[Outcome]:
            for outcome in over(function, every):
                bar.advance(bar.task_ids[0])
                yield outcome

        advice = advise(study, cases, watched)
    if html:
        from placer.report.html import sweep_report  # reads Plotly: only where it is asked for

        write_text(html, sweep_report(study, advice))
    if as_json:
        print_json({**advice_json(advice, study.model.sized), "notes": told(study.profile.notes)})
    else:
        for table in sweep_tables(advice, study.model.sized):
            out.print(table)
        out.print(
            "* further redundancy does not pay; ** the best of these; blind: what the slots win, "
            "whatever the traffic",
            style="dim",
        )
        out.print(f"{advice.verdict}: {advice.reason}", soft_wrap=True)
    if html:
        note(f"wrote the report to {html}")


def _topologies(names: str, gpus: str | None) -> list[Topology]:
    """Every topology at every width."""
    widths = [None] if gpus is None else [_number(text, "--gpus") for text in gpus.split(",")]
    return [
        inputs.resolve_topology(name.strip(), width, None)
        for name in names.split(",")
        for width in widths
    ]


def _dispatches(names: str) -> list[Dispatch]:
    known: dict[str, Dispatch] = {name: name for name in DISPATCHES}
    return [lookup("dispatch", name.strip(), known, PlacementError) for name in names.split(",")]


def _redundancies(text: str, experts: int, gpus: int) -> list[int]:
    """Numbers as they are; of a range those that give every GPU as many slots."""
    first, dots, last = text.partition("..")
    if not dots:
        return [_number(part, "--redundant") for part in text.split(",")]
    low, high = _number(first, "--redundant"), _number(last, "--redundant")
    fitting = [extra for extra in range(low, high + 1) if (experts + extra) % gpus == 0]
    if not fitting:
        raise PlacementError(
            f"--redundant {text}: none of these gives {gpus} GPUs as many slots each"
            f": {-experts % gpus} and every {gpus} more do"
        )
    return fitting


def _number(text: str, option: str) -> int:
    if not text.strip().isdecimal():
        raise PlacementError(f"{option} {text!r}: give whole numbers, such as 8,16,32")
    return int(text)
