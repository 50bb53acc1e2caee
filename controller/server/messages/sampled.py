"""Sampled requests in messages: asked for, as agents push them, and as they are given out."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from controller.config import Traces
from controller.fleet.traces import Request, trace_of
from controller.fleet.windows import Delta
from controller.server.messages.wire import PHASES
from placer import messages
from placer.errors import RoutingError
from placer.marks import Mark
from placer.model import ModelShape
from placer.v1 import profile_pb2

MOST = 10_000  # requests of a push: more would hold the others up
PART = 2**20  # bytes of requests in an answer, unless one request has more


def requests(sampled: Any, counted: Sequence[Delta], with_ids: bool) -> list[Request]:
    """Of a Trace message the first MOST, cut where prompts end; vocabulary ids are not even looked
    at unless they are wanted. counted: by the same push. Raises RoutingError for what no model
    routes."""
    if not counted:
        raise RoutingError("sampled requests without counts: push both")
    (layers, experts), top_k, lens = counted[0].load.shape, counted[0].top_k, sampled.seq_lens
    if (sampled.layers, sampled.top_k) != (layers, top_k):
        raise RoutingError(
            f"sampled requests of {sampled.layers} layers, top-{sampled.top_k}, but counts of "
            f"{layers} layers, top-{top_k}: are both of one model?"
        )
    trace = messages.trace_of(sampled, experts, with_ids=with_ids)
    known = len(sampled.prompt_lens) > 0
    prompts = sampled.prompt_lens if known else [0] * len(lens)
    if len(prompts) != len(lens):
        raise RoutingError(f"{len(prompts)} prompt_lens of {len(lens)} sampled requests")
    marks = sampled.marks or [Mark.NONE] * len(lens)
    if len(marks) != len(lens) or not set(marks) <= set(Mark):
        raise RoutingError(
            f"marks {list(marks[:9])} of {len(lens)} sampled requests: 0, 1 or 2 each"
        )
    ranks = sampled.ranks or [-1] * len(lens)
    if len(ranks) != len(lens):
        raise RoutingError(f"{len(ranks)} ranks of {len(lens)} sampled requests")
    found, first = [], 0
    told = zip(lens, prompts, marks, ranks, strict=True)
    for length, prompt, mark, rank in islice(told, MOST):
        middle, end = first + min(prompt, length), first + length
        rest = "decode" if known else "mixed"
        asked = None
        for phase, begin, until in (("prefill", first, middle), (rest, middle, end)):
            if begin < until:  # copied, or the whole push would be kept
                ids = None if trace.token_ids is None else trace.token_ids[begin:until].copy()
                own = trace.expert_ids[begin:until].copy()
                found.append(Request(phase, experts, own, ids, Mark(mark), rank, asked=asked))
                asked = ids
        first = end
    return found


def sampling(wanted: Traces, workers: int) -> Any:
    """What each of so many workers is asked to sample, so that all together sample as many requests
    as are kept in as long as they are kept."""
    every_s = wanted.kept_s * max(workers, 1) / wanted.requests
    return profile_pb2.Sampling(every_s=every_s, token_ids=wanted.token_ids)


def answers(model: ModelShape, phase: str, requests: Iterable[Request]) -> Iterator[Any]:
    """Those of one phase, in as many answers as that takes."""
    part: list[Request] = []
    size = 0
    for one in requests:
        if part and size + one.bytes > PART:
            yield _answer(model, phase, part)
            part, size = [], 0
        part.append(one)
        size += one.bytes
    if part:
        yield _answer(model, phase, part)


def _answer(model: ModelShape, phase: str, requests: Sequence[Request]) -> Any:
    known = {name: number for number, name in PHASES.items()}
    return profile_pb2.ReadTracesResponse(
        phase=known.get(phase, profile_pb2.PHASE_UNSPECIFIED),
        shape=json.dumps(asdict(model)),
        trace=messages.trace_message(trace_of(requests)),
    )
