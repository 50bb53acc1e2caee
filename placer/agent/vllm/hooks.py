"""Where the agent hooks into vLLM, 0.32 and 0.33.

Hooks, set once a process: a model runner's ``load_model``, after which the experts are known, and
``execute_model``, one step; ``EplbState.rearrange``, and the balancing policy. What goes wrong in
a hook is logged once and ends the agent's work, not the engine's.
"""

import logging
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from vllm.distributed.eplb.eplb_state import EplbState
from vllm.platforms import current_platform
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as GPUModelRunnerV2
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from placer.agent.sinks import OpenSink
from placer.agent.vllm.worker_agent import CLOCK, WorkerAgent, start

log = logging.getLogger("vllm.placer")


def install(open_sink: OpenSink, record: str) -> None:
    """Hook into the model runners of this process."""
    runners: list[type] = [GPUModelRunner, GPUModelRunnerV2]
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        runners.append(CPUModelRunner)
    for runner in runners:
        if "load_model" in vars(runner):
            _after(runner, "load_model", partial(_loaded, open_sink, record))
        if "execute_model" in vars(runner):
            _after(runner, "execute_model", _stepped)
    rearrange = EplbState.rearrange

    @wraps(rearrange)
    def watched(self: Any, is_profile: bool = False, *args: Any, **kwargs: Any) -> Any:
        run = partial(rearrange, self, is_profile, *args, **kwargs)
        agent = getattr(self, "placer", None)
        if agent is None:
            return run()
        agent.attach(self)
        return agent.applying.rearranging(run, is_profile)

    EplbState.rearrange = watched


def _after(owner: type, name: str, then: Callable[..., None]) -> None:
    """Run ``then`` after a method, with its arguments and ``begun_s``; its errors end the agent
    alone."""
    method = getattr(owner, name)

    @wraps(method)
    def extended(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun_s = CLOCK.monotonic()
        result = method(self, *args, **kwargs)
        try:
            then(self, *args, begun_s=begun_s, **kwargs)
        except Exception:
            log.exception("placer: the agent stops, serving goes on")
            self.placer = None
        return result

    setattr(owner, name, extended)


def _loaded(open_sink: OpenSink, record: str, runner: Any, *_: Any, **__: Any) -> None:
    if getattr(runner, "placer", None) is None:
        runner.placer = start(runner, open_sink, record)


def _stepped(
    runner: Any, scheduled: Any, *_: Any, begun_s: float, dummy_run: bool = False, **__: Any
) -> None:
    agent: WorkerAgent | None = getattr(runner, "placer", None)
    if agent is not None and not dummy_run:
        agent.step(runner, scheduled, begun_s)
