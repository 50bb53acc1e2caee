"""The `vllm.general_plugins` entry point: PLACER_AGENT switches the agent on, in every process.

PLACER_AGENT is a directory to record into and to take plans from, or a controller's address
(``host:port``), to which PLACER_POOL and PLACER_ENGINE say whose worker it is. Without it nothing
is imported or changed.
"""

import logging
import os
import re
import socket
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
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    init_device = WorkerWrapperBase.init_device

    @wraps(init_device)
    def hooked(self: Any) -> None:
        # Only workers need the hooks, and only now may they import the model runner.
        _hook(target)
        init_device(self)

    WorkerWrapperBase.init_device = hooked
    if current_platform.is_cpu():
        from placer.agent import cpu

        cpu.enable()  # around the agent's hook, so that EPLB is there when that looks for it


@cache
def _hook(target: str) -> None:
    try:
        from placer.agent.engine import install

        install(_sink(target))
    except Exception:
        log.exception("placer: the agent cannot start, serving goes on without it")


def _sink(target: str) -> Any:
    """What opens the way to a controller, or to a directory."""
    if re.fullmatch(r"[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+", target):
        from placer.agent.grpc_sink import GrpcSink
        from placer.channel import Settings, open_channel

        # Settings that cannot be are to end the agent here, before it touches the engine.
        open_channel(target, Settings.of_environment()).close()
        return lambda worker, model: GrpcSink(target, worker, _identity(worker.model), model)

    from placer.agent.file_sink import FileSink

    return partial(FileSink, Path(target).absolute())


def _identity(model: str) -> Any:
    from placer.agent.status import Identity

    pool = os.environ.get("PLACER_POOL", "").strip() or Path(model).name
    return Identity(pool, os.environ.get("PLACER_ENGINE", "").strip() or socket.gethostname())
