"""The `vllm.general_plugins` entry point: PLACER_AGENT switches the agent on, in every process, and
PLACER_HMM the load format "placer".

Without them nothing is imported or changed.
"""

import logging
import os
from functools import cache, wraps
from importlib import import_module
from typing import Any

from placer.errors import PlacerError

SUPPORTED = ("0.32", "0.33")
RECORD = ("never", "sampled", "always")

log = logging.getLogger("vllm.placer")


def register() -> None:
    """Called by vLLM in each of its processes, before the model is built."""
    target = os.environ.get("PLACER_AGENT", "").strip()
    shares = bool(os.environ.get("PLACER_HMM", "").strip())
    if not (target or shares):
        return
    try:
        _install(target, shares)
    except Exception:
        log.exception("placer: the agent cannot start, serving goes on without it")


def _install(target: str, shares: bool) -> None:
    from vllm.version import __version__

    if ".".join(__version__.split(".")[:2]) not in SUPPORTED:
        log.warning(
            "placer: vLLM %s is not known to the agent, which leaves the engine alone: use %s",
            __version__,
            " or ".join(SUPPORTED),
        )
        return
    from vllm.platforms import current_platform
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    init_device = WorkerWrapperBase.init_device

    @wraps(init_device)
    def hooked(self: Any) -> None:
        # Only workers need the hooks, and only now may they import the model runner.
        if target:
            _hook(target)
        if shares:
            import_module("placer.agent.vllm.weights.shared_weights")
        init_device(self)

    WorkerWrapperBase.init_device = hooked
    if target and current_platform.is_cpu():
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
