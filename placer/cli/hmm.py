"""placer hmm: weights that vLLM engines on this machine share."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from placer.cli.console import note, out
from placer.memory.lending import serve


def hmm(
    socket: Annotated[Path, typer.Option(help="Where engines find it; its owner's alone.")],
) -> None:
    """Own the weights that engines on this machine share, until Ctrl-C: docs/shared-weights.md.

    The first engine that comes loads them, and the others map them.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out.print(f"engines: PLACER_HMM={socket} vllm serve MODEL --load-format placer", soft_wrap=True)
    try:
        serve(socket)
    except KeyboardInterrupt:
        note("weights live on in the engines that have them; new ones cannot get them any more")
