"""A worker that has counted a few tokens, without an engine. Imported by scripts, too."""

from collections.abc import Sequence as Row
from dataclasses import replace
from typing import Any

import numpy as np

from placer.agent.recording import Counts, Recording
from placer.agent.sampling import Sequence
from placer.arrays import FloatArray, IntArray
from placer.placement import Placement
from placer.plan import Plan
from placer.profile import Profile, of_trace
from placer.trace import Trace
from placer.worker import Status, Worker

Tokens = Row[Row[Row[int]]]  # for each token, for each layer, its experts

IN_ORDER = [[0, 1, 2, 3], [0, 1, 2, 3]]


def a_worker(rank: int = 0, **changes: Any) -> Worker:
    """One of two ranks that serve 2 layers x 4 experts, top-1, without redundancy."""
    worker = Worker(
        name=f"worker-{rank}",
        model="tiny",
        layers=2,
        experts=4,
        top_k=1,
        slots=4,
        ep_rank=rank,
        ep_size=2,
        can_apply=True,
        records=True,
    )
    return replace(worker, **changes)


def a_status(rank: int = 0, **changes: Any) -> Status:
    return Status(a_worker(rank), **changes)


def a_plan(rows: Row[Row[int]] = IN_ORDER, experts: int = 4, gpus: int = 2, **more: Any) -> Plan:
    """One that ``a_worker`` may apply, unless it is changed."""
    return Plan(Placement(np.array(rows), experts, gpus), **more)


def routed(tokens: Tokens, experts: int = 4) -> Trace:
    return Trace(np.array(tokens), np.array([len(tokens)]), experts)


def a_sequence(tokens: Tokens, first_id: int = 100, prompt: int = 0) -> Sequence:
    """A sampled request whose vocabulary ids count up."""
    return Sequence(np.array(tokens, dtype=np.int16), prompt, first_id + np.arange(len(tokens)))


def assert_drawn(transitions: FloatArray | IntArray, exact: Profile) -> None:
    """Of each token's pairs of experts in two layers one was drawn, each as likely."""
    assert exact.transitions is not None
    assert (transitions.sum(axis=(1, 2)) == exact.tokens).all()
    assert not transitions[exact.transitions == 0].any()
    variance = exact.transitions * (1 - 1 / exact.top_k**2)
    squares = ((transitions - exact.transitions) ** 2).sum()
    # Of squares of counts, nearly of Poisson's law. Engines batch, and so draw, differently in each
    # run: six standard errors; a column that stands for all is fifty off.
    error = (variance + 2 * variance**2).sum() ** 0.5
    assert abs(squares - variance.sum()) <= 6 * error


def a_recording(
    prefill: Tokens = (),
    decode: Tokens = (),
    sampled: Row[Sequence] = (),
    experts: int = 4,
    window_s: float = 5.0,
) -> Recording:
    """One request in each phase that has tokens, counted by ``placer.profile`` and not by the
    agent. Of a token's pairs in consecutive layers the first is what was drawn."""
    phases = [of_trace(routed(tokens, experts)) if tokens else None for tokens in (prefill, decode)]
    (like, *_) = [profile for profile in phases if profile is not None]
    layers, pairs = like.layers, (experts, experts)
    load = np.zeros((2, layers, experts))
    transitions = np.zeros((2, layers - 1, *pairs))
    coactivation = np.zeros((2, layers, *pairs))
    for at, (profile, routing) in enumerate(zip(phases, (prefill, decode), strict=True)):
        if profile is not None:
            load[at] = profile.load
            first = np.array(routing)[:, :, 0]
            np.add.at(transitions[at], (np.arange(layers - 1), first[:, :-1], first[:, 1:]), 1)
            coactivation[at] = profile.coactivation
            coactivation[at] += profile.load[:, :, None] * np.eye(experts)
    tokens = np.array([len(prefill), len(decode)])
    counts = Counts(
        load.astype(np.int64), transitions.astype(np.int64), coactivation.astype(np.int64), tokens
    )
    return Recording(counts, list(sampled), (tokens > 0).astype(np.int64), window_s)
