"""placer record: an engine with the agent, from start to end."""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from placer.agent import folder
from placer.cli.console import BAD_INPUT, note, out, progress, stop
from placer.errors import FileError
from placer.files.routing import read_header, read_profile, write_profile
from placer.files.specs import shape_of
from placer.profile import merge


def record(
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND", help="Such as: vllm serve MODEL ...")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="Where the recording goes.")] = Path(
        "recording"
    ),
) -> None:
    """Start an engine with the agent and record what its routers choose, until it ends.

    Ends with a profile of all traffic, OUT/profile.npz, and traces of sampled requests.
    """
    if folder.profiles(out_dir):
        raise FileError(f"{out_dir} holds a recording: choose another --out, or remove it")
    out_dir.mkdir(parents=True, exist_ok=True)
    code = _run(command, {**os.environ, "PLACER_AGENT": str(out_dir.absolute())})
    note(f"{command[0]} ended with code {code}")
    paths = folder.profiles(out_dir)
    if not paths:
        stop(
            "error",
            f"nothing was recorded in {out_dir}: were there requests? The engine's log says "
            "'placer:' where the agent started",
            BAD_INPUT,
        )
    with progress("adding up"):
        total = merge([read_profile(path) for path in paths])
        model = read_header(paths[0]).meta.get("model")
        write_profile(out_dir / "profile.npz", total, shape_of(model) if model else None)
    traces = folder.traces(out_dir)
    sampled = sum(int(read_header(path).tokens) for path in traces)
    out.print(
        f"recorded {total.tokens:,.0f} tokens of {total.layers} layers x {total.experts} experts, "
        f"{sampled:,} of them token by token",
        highlight=False,
        soft_wrap=True,
    )
    # A trace knows which tokens belong together, and what a hold-out is.
    source = f"{out_dir}/worker-*/traces/*.npz" if sampled else f"{out_dir}/profile.npz"
    holdout = " --holdout 0.5" if sampled else ""
    out.print(
        f"next: placer plan {source} --gpus 8{holdout} --out plan.json --html report.html",
        highlight=False,
        soft_wrap=True,
    )


def _run(command: Sequence[str], env: dict[str, str]) -> int:
    """Until the command ends; an interrupt is for the engine, which then has something to save."""
    try:
        process = subprocess.Popen(command, env=env)
    except OSError as error:
        raise FileError(f"cannot start {command[0]}: {error.strerror}: is it installed?") from error
    mine = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: process.terminate()}
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
