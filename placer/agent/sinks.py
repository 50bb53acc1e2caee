"""Which way recordings leave and plans come in: what PLACER_AGENT names, a directory or a
controller's address (``host:port``), to which PLACER_POOL and PLACER_ENGINE say whose worker it is,
PLACER_API where its engine is told to change its width, and PLACER_POD_NAME, PLACER_POD_UID and
PLACER_NODE where it runs.
"""

import os
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from placer.agent.file_sink import FileSink
from placer.agent.reporter import Sink
from placer.clock import ThreadClock
from placer.model import ModelShape
from placer.worker import Identity, Pod, Worker

OpenSink = Callable[[Worker, ModelShape | None], Sink]


def way_to(target: str, clock: ThreadClock) -> OpenSink:
    """What opens it. Raises PlacerError if that cannot be with the settings that there are."""
    if not re.fullmatch(r"[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+", target):
        return partial(FileSink, Path(target).absolute())
    from placer.agent.grpc_sink import GrpcSink
    from placer.channel import Settings, open_channel

    open_channel(target, Settings.of_environment()).close()
    return lambda worker, model: GrpcSink(target, worker, _identity(worker.model), model, clock)


def _identity(model: str) -> Identity:
    pool, engine = _said("POOL") or Path(model).name, _said("ENGINE") or socket.gethostname()
    pod = Pod(_said("POD_NAME"), _said("POD_UID"), _said("NODE"))
    return Identity(pool, engine, api=_said("API"), metrics=_said("METRICS"), pod=pod)


def _said(name: str) -> str:
    return os.environ.get(f"PLACER_{name}", "").strip()
