"""placer record: an engine with the agent, from start to end; or what a controller has sampled."""

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from placer.agent import folder
from placer.agent.recording import PHASES
from placer.cli.client import controller, words
from placer.cli.console import BAD_INPUT, note, out, progress, stop
from placer.errors import FileError
from placer.files.atomic import make_folder
from placer.files.documents import of_json
from placer.files.routing import read_header, read_profile, write_profile, write_trace
from placer.files.specs import shape_of
from placer.messages import trace_of
from placer.model import ModelShape
from placer.profile import Profile, merge
from placer.trace import Trace, concatenate
from placer.v1 import profile_pb2

Phase = Literal["prefill", "decode", "mixed"]
WRITES_S = 3.0  # in which an idle engine's agents have written everything


def record(
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- COMMAND]", help="Such as: vllm serve MODEL ..."),
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Where the recording goes.")] = Path(
        "recording"
    ),
    address: Annotated[
        str | None,
        typer.Option("--from", help="A controller's host:port: fetch what it has sampled."),
    ] = None,
    pool: Annotated[str, typer.Option(help="With --from: whose requests.")] = "",
    phase: Annotated[
        Phase, typer.Option(help="With --from: only tokens of this phase; mixed is all.")
    ] = "mixed",
) -> None:
    """Start an engine with the agent and record what its routers choose, until it ends.

    Ends with a profile of all traffic, OUT/profile.npz, and traces of sampled requests.

    With --from: fetch the requests that a controller keeps of a pool, as OUT/traces/*.npz. It takes
    a trace reader's token, and is written down in the history.
    """
    if (address is None) == (not command):
        raise typer.BadParameter("give a command after --, or a controller with --from")
    if address is not None:
        _fetch(address, pool, phase, out_dir / "traces")
        return
    assert command
    if folder.profiles(out_dir):
        raise FileError(f"{out_dir} holds a recording: choose another --out, or remove it")
    make_folder(out_dir)
    code = _run(command, {**os.environ, "PLACER_AGENT": str(out_dir.absolute())})
    paths = folder.profiles(out_dir)
    if not paths:
        stop(
            "error",
            f"{command[0]} ended with code {code} and nothing was recorded in {out_dir}: were "
            "there requests? The engine's log says 'placer:' where the agent started",
            BAD_INPUT,
        )
    with progress("adding up"):
        total = merge([read_profile(path) for path in paths])
        model = read_header(paths[0]).meta.get("model")
        write_profile(out_dir / "profile.npz", total, shape_of(model) if model else None)
    if code:
        note(f"{command[0]} ended with code {code}")
    traces = folder.traces(out_dir)
    sampled = sum(int(read_header(path).tokens or 0) for path in traces)
    out.print(
        f"recorded {total.tokens:,.0f} tokens of {total.layers} layers x {total.experts} experts, "
        f"{sampled:,} of them token by token",
        soft_wrap=True,
    )
    out.print(f"next: {_next(out_dir, total, sampled > 0)}", soft_wrap=True)


def _fetch(address: str, pool: str, phase: Phase, place: Path) -> None:
    """Raises PlacerError if they may not be read, or there are none."""
    if any(place.glob("*.npz")):
        raise FileError(f"{place} holds traces: choose another --out, or remove them")
    number = profile_pb2.Phase.Value(
        f"PHASE_{'UNSPECIFIED' if phase == 'mixed' else phase.upper()}"
    )
    request = profile_pb2.ReadTracesRequest(pool=pool, phase=number)
    parts: dict[str, list[Trace]] = {}
    model: ModelShape | None = None
    with controller(address) as found:
        for answer in found.read(found.profile.ReadTraces, request):
            model = shape_of(of_json(answer.shape, f"the model's sizes, as {address} tells them"))
            name = words(profile_pb2.Phase.DESCRIPTOR, answer.phase)
            name = name if name in PHASES else "mixed"
            parts.setdefault(name, []).append(trace_of(answer.trace, model.experts, name))
    if model is None:
        raise FileError(
            f"{address} keeps no sampled requests of {pool}, {phase}: wait until some have ended"
        )
    make_folder(place)
    place.chmod(0o700)  # they tell what users wrote
    for name, traces in parts.items():
        whole, path = concatenate(traces), place / f"{name}.npz"
        write_trace(path, whole, model)
        ids = "without" if whole.token_ids is None else "with"
        out.print(
            f"{path}: {whole.sequences:,} requests, {whole.tokens:,} tokens, {ids} token ids",
            soft_wrap=True,
        )
    source = shlex.quote(str(place))
    out.print(f"next: placer plan {source}/*.npz --gpus N --holdout 0.5 --out plan.json")


def _next(out_dir: Path, total: Profile, is_sampled: bool) -> str:
    """A command that plans from the recording, for the engine's own width if it has one."""
    place = shlex.quote(str(out_dir))
    # A trace knows which tokens belong together, and what a hold-out is.
    source = f"{place}/worker-*/traces/*.npz" if is_sampled else f"{place}/profile.npz"
    holdout = " --holdout 0.5" if is_sampled and total.sequences > 1 else ""
    gpus = next(width for width in (8, 6, 4, 3, 2, 1) if total.experts % width == 0)
    where = f"--gpus {gpus}"
    for status in folder.read_statuses(out_dir, time.time()):
        worker = status.worker
        if worker.ep_size > 1:
            where = f"--gpus {worker.ep_size} --redundant {worker.slots - worker.experts}"
    return f"placer plan {source} {where}{holdout} --out plan.json --html report.html"


def _run(command: Sequence[str], env: dict[str, str]) -> int:
    """Until the command ends. An interrupt reaches it late: vLLM kills its workers at once."""
    try:
        process = subprocess.Popen(command, env=env, start_new_session=True)
    except OSError as error:
        raise FileError(
            f"cannot start {command[0]}: {error.strerror}: give a command that can be run"
        ) from error
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    interrupts = 0
    try:
        while True:
            try:
                return process.wait(timeout=WRITES_S if interrupts == 1 else None)
            except subprocess.TimeoutExpired:
                interrupts += 1
                process.send_signal(signal.SIGINT)
            except KeyboardInterrupt:
                interrupts += 1
                if interrupts > 1:
                    process.terminate()
                else:
                    note("the agents write what is left, then the engine ends; again: it ends now")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
