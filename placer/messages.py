"""Arrays and traces in messages, as agents, controllers and the command line hand them on."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from placer.arrays import IntArray
from placer.errors import RoutingError
from placer.trace import Trace
from placer.v1 import profile_pb2

PUSH_BYTES = 128 * 2**20  # that a controller takes: of 60 x 512 experts a phase's pairs have 125 MB


def array(
    name: str, data: bytes | memoryview, shape: tuple[int, ...], kind: str = "<u4"
) -> IntArray:
    """Raises RoutingError unless it has as many bytes as that takes."""
    dtype = np.dtype(kind)
    size = math.prod(shape) * dtype.itemsize
    if len(data) != size:
        raise RoutingError(
            f"{name} has {len(data)} bytes and not {size}, for {list(shape)} {dtype.name}"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def trace_message(
    trace: Trace,
    prompt_lens: Iterable[int] = (),
    marks: Iterable[int] = (),
    ranks: Iterable[int] = (),
) -> Any:
    return profile_pb2.Trace(
        layers=trace.layers,
        top_k=trace.top_k,
        seq_lens=trace.seq_lens.tolist(),
        expert_ids=trace.expert_ids.astype("<u2").tobytes(),
        token_ids=b"" if trace.token_ids is None else trace.token_ids.astype("<u4").tobytes(),
        prompt_lens=prompt_lens,
        marks=marks,
        ranks=ranks,
    )


def trace_of(message: Any, experts: int, phase: str = "mixed", with_ids: bool = True) -> Trace:
    """Without ``with_ids`` vocabulary ids are not even looked at. Raises RoutingError for what no
    model of so many experts routes."""
    tokens = sum(message.seq_lens)
    shape = tokens, message.layers, message.top_k
    is_told = with_ids and message.token_ids
    return Trace(
        expert_ids=array("expert_ids", message.expert_ids, shape, "<u2"),
        seq_lens=np.array(message.seq_lens, dtype=np.int64),
        experts=experts,
        token_ids=array("token_ids", message.token_ids, (tokens,)) if is_told else None,
        meta={"phase": phase},
    )
