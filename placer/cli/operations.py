"""placer approve, reject and rollback, and plans for a controller: what is begun, waited for, and
ends."""

import getpass
import os
import time
import uuid
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.filesize import decimal

from placer.cli.client import PLANNING_S, Json, Reason, To, as_dict, controller, words
from placer.cli.console import HOLD, note, out, print_json, progress, stop
from placer.cli.wording import span, state
from placer.client import ADDRESS, Controller, ControllerError, NobodyError
from placer.errors import PlacerError
from placer.files.atomic import read_text
from placer.files.plans import LIMIT, parse_plan
from placer.report.plain import plain
from placer.v1.fleet_pb2 import OperationPhase, OperationsRequest, StatusRequest
from placer.v1.placement_pb2 import (
    ApplyRequest,
    ApproveRequest,
    ProposeRequest,
    RejectRequest,
    RollbackRequest,
)

Approver = Annotated[str, typer.Option(help="Who decides; you, without it.", show_default=False)]
LOOK_S = 0.25
AWAY_S = 60.0  # that a controller may take to start again


def approve(
    plan_id: Annotated[str, typer.Argument(metavar="PLAN", help="Its id, such as plan-1.")],
    version: Annotated[
        int, typer.Option(help="That you looked at; fails if it was changed since.", min=0)
    ] = 0,
    now: Annotated[
        bool, typer.Option("--now", help="Begin at once, whatever the hour, and wait for its end.")
    ] = False,
    reason: Reason = "",
    approver: Approver = "",
    to: To = ADDRESS,
    as_json: Json = False,
) -> None:
    """Approve a plan, which the controller applies in its turn; with --now, at once.

    --now waits for the end: with 0 once the plan is applied, with 3 if it was taken back.
    """
    with controller(to) as found:
        if now:
            begun = _begin(found, plan_id, version, reason, _who(approver))
            end(found, wait_for(found, begun), "succeeded", as_json)
            return
        was = found.newest("plan", plan_id)
        request = ApproveRequest(
            plan_id=plan_id,
            version=version,
            reason=reason,
            approver=_who(approver),
            digest=as_dict(was)["body"]["digest"],
            idempotency_key=str(uuid.uuid4()),
        )
        plan = found.ask(found.placement.Approve, request).plan
        if as_json:
            print_json({"status": "approved", **as_dict(plan)})
            return
        if state(was) == "approved":
            note(f"it was approved before, {span(time.time() - was.at_s)} ago: {was.reason}")
        out.print(
            f"{plan.id} is approved and begins in its turn, when the pool's hours allow"
            f"\nfollow it: placer watch {plan.pool}{found.option}",
            soft_wrap=True,
        )  # fmt: skip


def reject(
    plan_id: Annotated[str, typer.Argument(metavar="PLAN", help="Its id, such as plan-1.")],
    version: Annotated[
        int, typer.Option(help="That you looked at; fails if it was changed since.", min=0)
    ] = 0,
    reason: Reason = "",
    approver: Approver = "",
    to: To = ADDRESS,
    as_json: Json = False,
) -> None:
    """Reject a plan that waits: it is not applied, nor proposed again while all is as it was."""
    with controller(to) as found:
        request = RejectRequest(
            plan_id=plan_id, version=version, reason=reason, approver=_who(approver)
        )
        plan = found.ask(found.placement.Reject, request).plan
        if as_json:
            print_json({"status": "rejected", **as_dict(plan)})
            return
        out.print(f"{plan.id} is rejected, and {plan.pool} stays as it is", soft_wrap=True)


def rollback(
    pool: Annotated[str, typer.Argument(metavar="POOL")],
    reason: Reason = "",
    to: To = ADDRESS,
    as_json: Json = False,
) -> None:
    """Take back what runs in POOL, or else its last change, and wait for the end."""
    with controller(to) as found:
        request = RollbackRequest(pool=pool, reason=reason, idempotency_key=str(uuid.uuid4()))
        begun = found.ask(found.placement.Rollback, request).operation
        ended = wait_for(found, begun)
        wanted = "succeeded" if begun.kind == "rollback" else "rolled back"
        end(found, ended, wanted, as_json)


def hand_over(plan_file: Path, to: str, pool: str, wait_s: float | None) -> None:
    """Have a controller apply a plan file at once, and wait for the end."""
    text = read_text(plan_file, LIMIT)
    parse_plan(text, str(plan_file))  # so that a broken one is told by its name here
    with controller(to) as found:
        request = ProposeRequest(
            pool=pool or _only_pool(found), file=text.encode(), reason=f"{plan_file.name}"
        )
        answer = found.ask(found.placement.Propose, request, PLANNING_S)
        note(f"{plan_file} is {answer.plan.id} of {answer.plan.pool}")
        told = (answer.plan.version, f"applied from {plan_file.name}", _who(""))
        begun = _begin(found, answer.plan.id, *told)
        end(found, wait_for(found, begun, wait_s), "succeeded", as_json=False)


def wait_for(found: Controller, operation: Any, wait_s: float | None = None) -> Any:
    """The operation at its end. It goes on after its controller was killed, and so does this."""
    heard_s = time.monotonic()
    until_s = heard_s + wait_s if wait_s is not None else None
    later = f"placer explain {operation.id}{found.option}"
    request = OperationsRequest(operation_id=operation.id)
    try:
        with progress(operation.id) as bar:
            while _phase(operation) in ("waiting", "running", "returning"):
                if until_s is not None and time.monotonic() > until_s:
                    stop("hold", f"{operation.id} goes on after {wait_s:g} s, now "
                         f"{plain(operation.progress)}: {later}", HOLD)  # fmt: skip
                told = f"{operation.id}: {plain(operation.progress)}"
                bar.update(bar.task_ids[0], description=told)
                time.sleep(LOOK_S)
                try:
                    (operation,) = found.ask(found.fleet.Operations, request).operations
                    heard_s = time.monotonic()
                except NobodyError as error:
                    if time.monotonic() > heard_s + AWAY_S:
                        raise NobodyError(
                            f"{error} ({operation.id} goes on when it is back: {later})"
                        ) from error
    except KeyboardInterrupt:
        note(f"{operation.id} goes on without you: {later}")
        note(f"take it back: placer rollback {operation.pool}{found.option}")
        raise
    return operation


def _who(approver: str) -> str:
    """Who is at this terminal, unless somebody else is named."""
    try:
        return approver or getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def _begin(found: Controller, plan_id: str, version: int, reason: str, approver: str) -> Any:
    request = ApplyRequest(
        plan_id=plan_id,
        version=version,
        reason=reason,
        idempotency_key=str(uuid.uuid4()),
        approver=approver,
    )
    try:
        return found.ask(found.placement.Apply, request).operation
    except ControllerError as error:
        _tell_if_approved(found, plan_id)
        raise ControllerError(str(error)) from error


def _tell_if_approved(found: Controller, plan_id: str) -> None:
    """Applying approves first: what cannot begin now does so later, by itself."""
    try:
        if state(found.newest("plan", plan_id)) == "approved":
            note(f"{plan_id} is approved all the same, and begins in its turn")
    except PlacerError:
        return  # the first error is the one to tell


def _only_pool(found: Controller) -> str:
    names = [pool.name for pool in found.ask(found.fleet.Status, StatusRequest()).pools]
    if len(names) == 1:
        return str(names[0])
    if not names:
        raise ControllerError(
            f"{found.address} has no pools yet: start the engines with PLACER_AGENT={found.address}"
        )
    raise ControllerError(f"{found.address} has pools {', '.join(names)}: choose one with --pool")


def _phase(operation: Any) -> str:
    return words(OperationPhase.DESCRIPTOR, operation.phase)


def end(found: Controller, operation: Any, wanted: str, as_json: bool) -> None:
    """Tell how it ended; with 3 if not as wanted."""
    phase, why = _phase(operation), plain(operation.reason)
    if as_json:
        print_json({"status": phase, **as_dict(operation)})
    if phase != wanted:
        _refuse(found, operation, phase, why)
    if as_json:
        return
    took = span(operation.changed_s - operation.begun_s)
    costs = [f"{decimal(operation.copied_bytes)} copied"] if operation.copied_bytes else []
    if operation.longest_pause_s:
        costs.append(f"longest pause {operation.longest_pause_s * 1e3:.0f} ms")
    rest = "; " + ", ".join(costs) if costs else ""
    before = operation.plan_id or "its width was changed"
    done = {
        "apply": f"{operation.plan_id} is applied on {operation.pool}",
        "rollback": f"{operation.pool} is where it was before {before}",
        "scale": f"engines of {operation.pool} have {operation.resize.ranks} ranks",
    }
    what = done.get(operation.kind, "")
    if phase == "rolled back":
        what = f"{operation.plan_id or operation.kind} was taken back: {why}"
    out.print(
        f"{operation.id} {phase} in {took}: {what}{rest}",
        soft_wrap=True,
    )  # fmt: skip


def _refuse(found: Controller, operation: Any, phase: str, why: str) -> NoReturn:
    if phase == "succeeded":  # and should not have
        why = f"{operation.id} was done before it could be taken back: run this again"
    if phase == "halted":
        why += found.option  # of the command that it ends with
    stop(phase, why, HOLD)
