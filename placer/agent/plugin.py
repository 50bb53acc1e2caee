"""The `vllm.general_plugins` entry point: PLACER_AGENT switches the agent on, in every process.

PLACER_AGENT is a directory to record into and to take plans from, or a controller's address
(``host:port``). Without it nothing is imported or changed.
"""

import logging
import os
import re
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

SUPPORTED = ("0.32", "0.33")

log = logging.getLogger("vllm.placer")


def register() -> None:
    """Called by vLLM in each of its processes, before the model is built."""
    target = os.environ.get("PLACER_AGENT", "").strip()
    if not target:
        return
    try:
        _install(target)
    except Exception:
        log.exception("placer: the agent cannot start, serving goes on without it")


def _install(target: str) -> None:
    from vllm.platforms import current_platform
    from vllm.version import __version__

    if ".".join(__version__.split(".")[:2]) not in SUPPORTED:
        log.warning(
            "placer: vLLM %s is not known to the agent, which leaves the engine alone: use %s",
            __version__,
            " or ".join(SUPPORTED),
        )
        return
    if re.fullmatch(r"[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+", target):
        log.warning(
            "placer: PLACER_AGENT=%s is an address and controllers are yet to come"
            ": give a directory",
            target,
        )
        return

    from vllm.v1.worker.worker_base import WorkerWrapperBase

    init_device = WorkerWrapperBase.init_device

    @wraps(init_device)
    def hooked(self: Any) -> None:
        # Only workers need the hooks, and only now may they import the model runner.
        _hook(Path(target).absolute())
        init_device(self)

    WorkerWrapperBase.init_device = hooked
    if current_platform.is_cpu():
        from placer.agent import cpu

        cpu.enable()  # around the agent's hook, so that EPLB is there when that looks for it


@cache
def _hook(directory: Path) -> None:
    try:
        from placer.agent.engine import install
        from placer.agent.file_sink import FileSink

        install(partial(FileSink, directory))
    except Exception:
        log.exception("placer: the agent cannot start, serving goes on without it")
