"""placer plan: from recorded traffic to a checked placement, or to the reason why not."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.filesize import decimal

from placer.cli import inputs
from placer.cli.console import (
    HOLD,
    INFEASIBLE,
    apart,
    note,
    out,
    print_json,
    progress,
    stop,
    writable,
)
from placer.files.atomic import write_text
from placer.files.plans import read_plan, write_plan
from placer.objective import STEP_TOKENS_PER_GPU, Dispatch, Effort, Objective, Solver
from placer.optimizers import OPTIMIZERS
from placer.optimizers import optimizer as prepared
from placer.plan import Hold, Infeasible, Plan, Provenance
from placer.planner import make_plan, solve
from placer.problem import Problem
from placer.report import figures
from placer.trace import told

OBJECTIVE, EFFORT = Objective(), Effort()  # for their defaults


def plan(
    traffic_files: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Traces or profiles (.npz).")
    ],
    gpus: Annotated[int | None, typer.Option(help="GPUs to place on.", min=1)] = None,
    nodes: Annotated[int | None, typer.Option(help="Nodes they stand in.", min=1)] = None,
    topology: Annotated[
        str | None, typer.Option(help="Preset (h100, gb200-nvl72, ...) or YAML file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Preset (deepseek-v3, ...), YAML file or config.json.")
    ] = None,
    redundant: Annotated[int, typer.Option(help="Slots a layer beyond one an expert.", min=0)] = 0,
    optimizer: Annotated[str, typer.Option(help=f"One of {', '.join(OPTIMIZERS)}.")] = "joint",
    dispatch: Annotated[
        Dispatch,
        typer.Option(help="How the engine moves tokens: vLLM's default, DeepEP-like, ExFlow-like."),
    ] = "allgather",
    overlap: inputs.Overlap = OBJECTIVE.overlap,
    guard: inputs.Guard = OBJECTIVE.guard,
    current: Annotated[
        Path | None, typer.Option(help="The plan that runs today: moves are counted from it.")
    ] = None,
    holdout: Annotated[
        float | None, typer.Option(help="Share of sequences to report on and not to plan from.")
    ] = None,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Let a GPU hold an expert twice.")
    ] = False,
    keep_groups: Annotated[
        bool, typer.Option("--keep-groups", help="Keep each expert group on one node.")
    ] = False,
    survive_node: Annotated[
        bool, typer.Option("--survive-node", help="Keep every expert on two nodes.")
    ] = False,
    uneven: Annotated[
        bool,
        typer.Option(
            "--uneven",
            help="Let GPUs hold different numbers of a layer's experts, within their memory over "
            "all layers (moetuner; engines with empty slots).",
        ),
    ] = False,
    homes: Annotated[
        bool,
        typer.Option(
            "--homes",
            help="Choose requests' GPUs, too, for a scheduler that sends them there (dedup).",
        ),
    ] = False,
    max_moved: Annotated[
        float, typer.Option(help="Share of slots that may differ from --current.", min=0, max=1)
    ] = OBJECTIVE.max_moved,
    horizon: Annotated[
        float, typer.Option(help="Seconds in which moves from --current must pay.", min=0, max=1e12)
    ] = OBJECTIVE.horizon_s,
    busy: Annotated[
        float,
        typer.Option(
            help="Share of them in which the engine works, if no INPUT tells.", min=1e-6, max=1
        ),
    ] = OBJECTIVE.busy,
    solver: Annotated[
        Solver, typer.Option(help="Of integer programmes (moetuner, exflow).")
    ] = EFFORT.solver,
    gap: Annotated[
        float, typer.Option(help="Share of the optimum that a solver may leave.", min=0, max=1e6)
    ] = EFFORT.gap,
    time_limit: Annotated[
        float, typer.Option(help="Seconds after which a solver gives its best.", min=0, max=1e9)
    ] = EFFORT.time_limit_s,
    seed: Annotated[int, typer.Option(help="For the hold-out and for the optimizer.", min=0)] = 0,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Where the plan goes.", callback=writable)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Where the report goes.", callback=writable)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Place the experts of a recorded model on GPUs, and show what it wins.

    Ends with 0 and a plan, 3 if nothing is to be won, 4 if no placement keeps the limits.
    """
    apart([out_file, html], traffic_files)
    where = inputs.resolve_topology(topology, gpus, nodes)
    running = read_plan(current).placement if current else None
    traffic = inputs.load_traffic(traffic_files, model, holdout, seed, clustered=homes)
    problem = Problem(
        model=traffic.model,
        topology=where,
        profile=traffic.profile,
        slots=traffic.model.experts + redundant,
        objective=Objective(
            dispatch=dispatch,
            tokens_per_gpu=STEP_TOKENS_PER_GPU[traffic.profile.phase],
            allow_duplicates=allow_duplicates,
            keep_groups=keep_groups,
            survive_node=survive_node,
            uneven=uneven,
            max_moved=max_moved,
            horizon_s=horizon,
            busy=busy,
            overlap=overlap,
            guard=guard,
        ),
        current=running,
        seed=seed,
        effort=Effort(solver=solver, gap=gap, time_limit_s=time_limit),
        trace=traffic.fit,
    )
    provenance = Provenance(
        optimizer=optimizer,
        options={
            "redundant": redundant,
            "holdout": holdout,
            "seed": seed,
            "solver": solver,
            "gap": gap,
            "time_limit_s": time_limit,
            "current": running.digest if running else None,
            **({"homes": True} if homes else {}),
        },
        inputs=traffic.inputs,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with progress(f"placing with {optimizer}"):
        prepared(optimizer)  # imports, and once compiles, outside the time that is shown
        begun = time.perf_counter()
        solution = solve(problem, optimizer)
        solve_ms = (time.perf_counter() - begun) * 1e3
        answer = make_plan(problem, solution, provenance, traffic.fit, traffic.holdout)
    if isinstance(answer, Infeasible | Hold):
        status, code = ("hold", HOLD) if isinstance(answer, Hold) else ("infeasible", INFEASIBLE)
        said = {"reason": answer.reason, "notes": told(traffic.profile.notes)}
        _refuse(as_json, {"status": status, "optimizer": optimizer, **said}, code)

    if html:
        from placer.report.html import plan_report  # reads Plotly: only where a report is asked for

        write_text(html, plan_report(answer, traffic.profile, problem.start))
    if out_file:
        write_plan(out_file, answer)
    if as_json:
        print_json(plan_json(answer, optimizer, solve_ms))
    else:
        _print(answer, optimizer, solve_ms)
        for text in answer.notes[len(told(traffic.profile.notes)) :]:  # those are said already
            note(text)
    for written, what in ((out_file, "plan"), (html, "report")):
        if written:
            note(f"wrote the {what} to {written}")


def plan_json(plan: Plan, optimizer: str, solve_ms: float) -> figures.Figures:
    """The object that --json prints."""
    assert plan.fit and plan.model and plan.move_cost  # make_plan gives all three
    sized = plan.model.sized
    return {
        **figures.NO_ANSWER,
        "status": "planned",
        "reason": plan.reason,
        "optimizer": optimizer,
        **figures.measured(plan.fit, sized),
        "moved": plan.move_cost.moved,
        "moved_share": plan.move_cost.moved_share,
        "moved_bytes": plan.move_cost.moved_bytes if sized else None,
        "solve_ms": solve_ms,
        "bound": plan.bound_s * 1e3 if plan.bound_s and sized else None,
        "gap": plan.gap,
        "digest": plan.placement.digest,
        "holdout": figures.measured(plan.holdout, sized) if plan.holdout else None,
        "guarded": figures.measured(plan.guarded, sized) if plan.guarded else None,
        "frontier": figures.frontier_json(plan),
        "notes": plan.notes,
    }


def _print(plan: Plan, optimizer: str, solve_ms: float) -> None:
    assert plan.fit and plan.model and plan.topology and plan.move_cost
    scores = {"before": plan.fit.before, "after": plan.fit.after}
    if plan.holdout:
        scores |= {"held out, before": plan.holdout.before, "held out, after": plan.holdout.after}
    if plan.guarded:
        scores |= {"guarded, before": plan.guarded.before, "guarded, after": plan.guarded.after}
    title = f"{plan.model.name} on {plan.topology.title}, {plan.objective.dispatch}, {optimizer}"
    out.print(figures.table(f"{title}; {plan.fit.after.basis}", scores, plan.model.sized))
    if plan.frontier:
        out.print(figures.frontier_table(plan))
    cost = plan.move_cost
    size = f", {decimal(cost.moved_bytes)}" if plan.model.sized else ""
    gap = "" if plan.gap is None else f"; within {plan.gap:.1%} of the best possible"
    out.print(
        f"{plan.reason} ({cost.moved_share:.0%} of all{size}); solved in {solve_ms:.0f} ms{gap}",
    )
    if plan.homes:
        out.print(plan.homes.told)


def _refuse(as_json: bool, refusal: figures.Figures, code: int) -> NoReturn:
    if as_json:
        print_json({**figures.NO_ANSWER, **refusal})
    stop(refusal["status"], f"{refusal['reason']}; nothing was written", code)
