"""Distinct experts of a step: as many requests together as an engine decodes at a time, drawn from
those that were sampled one by one."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from controller.fleet.pools import Group
from controller.fleet.traces import Request
from placer.arrays import FloatArray, Floats
from placer.tables.factors import thinned

FEWEST = 30  # requests of an engine, or a group, before anything is said
LARGEST = 25  # requests of a step: also of fewest without a part none is drawn twice
MOST = 128  # requests that are looked at, the newest
PARTS = 8  # of the requests, each left out once


def at_once(group: Group) -> int:
    """Tokens that an engine decodes in a mean step of the window, ``LARGEST`` at most; 0 if nobody
    measured steps."""
    pace = group.pace("mixed")
    if pace is None or not pace.steps or not group.engines:
        return 0
    telling = sum(member.registration.worker.records for member in group.members)
    mean = group.tokens("decode") / pace.steps * telling / len(group.engines)
    return min(max(round(mean), 1), LARGEST)


def unused(request: Request) -> FloatArray:
    """[layers, experts] chance that one of its tokens does not use an expert, of some layers."""
    layers, experts = request.expert_ids.shape[1], request.experts
    kept = thinned(layers, experts)
    cells = request.expert_ids[:, kept].astype(np.int64) + np.arange(len(kept))[:, None] * experts
    counts = np.bincount(cells.ravel(), minlength=len(kept) * experts)
    return 1 - counts.reshape(-1, experts) / request.tokens


def distinct(
    engines: Iterable[Sequence[Request]],
    size: int,
    by: Callable[[Request], Floats] = unused,
) -> tuple[float, float] | None:
    """Experts a layer that a step of ``size`` requests reads, mean of layers and engines, and its
    standard error; None where no engine served enough of them. A step has a token of each of its
    requests, drawn from those that it decoded.

    engines: what each of them decoded; by: what is known of a request, as ``unused`` has it
    """
    known = [them[-MOST:] for them in engines if len(them) >= FEWEST]
    if not known or not size:
        return None
    weights = np.array([len(them) for them in known]) / sum(map(len, known))
    each = (_of_engine(np.stack([by(one) for one in them]), size) for them in known)
    means, errors = zip(*each, strict=True)
    return float(weights @ means), float(np.sqrt(weights**2 @ np.square(errors)))


def _of_engine(unused: Floats, size: int) -> tuple[float, float]:
    """And its standard error, by leaving out one part of the requests after another."""
    parts = np.arange(len(unused)) % PARTS
    without = [_read(unused[parts != part], size) for part in range(PARTS)]
    return _read(unused, size), float(np.std(without) * np.sqrt(PARTS - 1))


def _read(unused: Floats, size: int) -> float:
    """The mean of all sets of ``size`` of the requests, by layer: an expert is not read if none of
    them uses it. Of the first r requests the mean product over sets of k is that of sets without
    and with the last one.

    unused: [requests, layers, experts]
    """
    mean = np.zeros((size + 1, *unused.shape[1:]))
    mean[0] = 1.0
    sets = np.arange(1, size + 1)[:, None, None]
    for number, one in enumerate(unused, start=1):
        share = np.minimum(sets / number, 1.0)
        mean[1:] = (1 - share) * mean[1:] + share * one * mean[:-1]
    return float((1 - mean[size]).sum(axis=1).mean())
