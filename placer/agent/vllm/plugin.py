"""The `vllm.general_plugins` entry point: PLACER_AGENT switches the agent on, in every process.

Without it nothing is imported or changed.
"""

import logging
import os
from functools import cache, wraps
from typing import Any

from placer.errors import PlacerError

SUPPORTED = ("0.32", "0.33")
RECORD = ("never", "sampled", "always")

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
        from placer.agent.vllm import cpu

        cpu.enable()  # around the agent's hook, so that EPLB is there when that looks for it


@cache
def _hook(target: str) -> None:
    try:
        from placer.agent.sinks import way_to
        from placer.agent.vllm.hooks import install
        from placer.agent.vllm.worker_agent import CLOCK

        # Settings that cannot be end the agent here, before it touches the engine.
        install(way_to(target, CLOCK), _record())
    except Exception:
        log.exception("placer: the agent cannot start, serving goes on without it")


def _record() -> str:
    """How much of the traffic is recorded."""
    said = os.environ.get("PLACER_RECORD", "").strip() or RECORD[-1]
    if said not in RECORD:
        raise PlacerError(f"PLACER_RECORD is {said!r}: use one of {', '.join(RECORD)}")
    return said
