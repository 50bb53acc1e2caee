"""placer score: a plan measured, token by token, on a trace."""

from pathlib import Path
from typing import Annotated

import typer

from placer.cli import inputs
from placer.cli.console import out, print_json, progress
from placer.cost import score as score_placement
from placer.files.plans import read_plan
from placer.files.routing import read_header
from placer.plan import Comparison
from placer.problem import Problem
from placer.profile import of_trace
from placer.report import figures
from placer.trace import told


def score(
    plan_file: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan (.json).")],
    trace_files: Annotated[
        list[Path], typer.Option("--trace", help="Traces to measure it on; repeat for more.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False,
) -> None:
    """Measure a plan on traces, beside the linear placement of the same slots."""
    plan = read_plan(plan_file)
    headers = [read_header(path) for path in trace_files]
    model = plan.model or inputs.resolve_model(headers, None)
    placement = plan.placement
    trace = inputs.read_traces(headers, model)
    topology = plan.topology or inputs.resolve_topology(None, placement.gpus, placement.nodes)
    # Slots that are there for GPUs to differ would hold replicas in the linear placement.
    slots = placement.slots
    if plan.objective.uneven:
        slots = model.experts + -model.experts % placement.gpus
    with progress("scoring"):
        problem = Problem(
            model, topology, of_trace(trace), slots, plan.objective, current=placement
        )
        scores = Comparison(
            score_placement(problem, problem.linear, trace),
            score_placement(problem, placement, trace),
        )
    if as_json:
        answer = {"status": "scored", "reason": f"measured on {trace.tokens} tokens"}
        print_json(
            {
                **figures.NO_ANSWER,
                **answer,
                "optimizer": plan.provenance.optimizer if plan.provenance else None,
                **figures.measured(scores, model.sized),
                "digest": placement.digest,
                "notes": told(trace.notes),
            }
        )
        return
    title = f"{plan_file} on {trace.tokens} tokens, {plan.objective.dispatch}; measured"
    columns = {"linear": scores.before, "plan": scores.after}
    out.print(figures.table(title, columns, model.sized))
