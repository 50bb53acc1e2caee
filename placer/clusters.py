"""Clusters of requests that use similar experts: small, and mergeable.

Requests are clusters of their own until there are more than MOST; then the two whose union adds
least to the tokens' squared distances from their clusters' means become one, again and again
(Ward's method, weighted by tokens). So short requests, of which little is known, are joined first.

Sums over clusters are those over requests, in whatever order they came. Up to MOST requests so is
everything else; beyond that, which requests share a cluster depends on when they were joined, but
not on the order of the parts of one merge.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from placer import arrays
from placer.arrays import FloatArray, frozen
from placer.errors import RoutingError
from placer.trace import Trace

MOST = 64  # clusters: several for each of the ranks that an engine mostly has
AT_A_TIME = 3 * MOST  # requests that are joined with those before


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """
    tokens:   [clusters]
    requests: [clusters]
    load:     [clusters, layers, experts] tokens routed to each expert
    """

    tokens: FloatArray
    requests: FloatArray
    load: FloatArray

    def __post_init__(self) -> None:
        count = len(self.tokens)
        if self.load.ndim != 3 or {len(self.load), len(self.requests)} != {count} or not count:
            raise RoutingError(
                f"clusters have loads {list(self.load.shape)}, tokens {list(self.tokens.shape)} and"
                f" requests {list(self.requests.shape)}: they must be [clusters, layers, experts] "
                "and [clusters]"
            )
        for name in ("tokens", "requests", "load"):
            array = np.asarray(getattr(self, name), dtype=np.float64)
            if not np.isfinite(array).all() or array.min(initial=0) < 0:
                raise RoutingError(
                    f"clusters' {name} hold NaN, infinity or negative counts: record again"
                )
            object.__setattr__(self, name, frozen(array))
        if not (self.tokens > 0).all() or (self.load > self.tokens[:, None, None]).any():
            raise RoutingError(
                "clusters hold an expert with more load than tokens, or no tokens at all: record "
                "again"
            )

    @property
    def digest(self) -> str:
        """``sha256:...`` of all counts."""
        return arrays.digest("placer.clusters/1", self.tokens, self.requests, self.load)


def of_requests(trace: Trace) -> Clusters:
    """The clusters of a trace's sequences."""
    found: Clusters | None = None
    for first in range(0, trace.sequences, AT_A_TIME):
        part = slice(first, min(first + AT_A_TIME, trace.sequences))
        load = loads_by_request(trace, part)
        own = Clusters(trace.seq_lens[part], np.ones(len(load)), load)
        found = merge([own] if found is None else [found, own])
    assert found is not None  # a trace has a sequence
    return found


def loads_by_request(trace: Trace, part: slice = slice(None)) -> FloatArray:
    """[sequences, layers, experts] tokens of each of some sequences that used each expert."""
    lens, ends = trace.seq_lens[part], np.cumsum(trace.seq_lens)[part]
    tokens = slice(int(ends[0] - lens[0]), int(ends[-1]))
    row = np.repeat(np.arange(len(lens)), lens)[:, None] * trace.experts
    found = np.empty((len(lens), trace.layers, trace.experts))
    for layer in range(trace.layers):
        cells = (row + trace.expert_ids[tokens, layer]).ravel()
        counts = np.bincount(cells, minlength=len(lens) * trace.experts)
        found[:, layer] = counts.reshape(len(lens), -1)
    return found


def merge(parts: Sequence[Clusters | None]) -> Clusters | None:
    """All clusters as MOST or fewer; None if some part does not know any."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    names = ("tokens", "requests", "load")
    joined = (np.concatenate([getattr(part, name) for part in known]) for name in names)
    return _fewer(Clusters(*joined))


def _fewer(clusters: Clusters) -> Clusters:
    """MOST of them or fewer, in an order that follows from their counts alone."""
    keys = [load.tobytes() for load in clusters.load]
    order = sorted(range(len(keys)), key=lambda at: (-clusters.tokens[at], keys[at]))
    label = _ward(clusters, order) if len(order) > MOST else np.arange(len(order))
    count = int(label.max()) + 1
    sums = []
    for array in (clusters.tokens, clusters.requests, clusters.load):
        total = np.zeros((count, *array.shape[1:]))
        np.add.at(total, label, array[order])
        sums.append(total)
    return Clusters(*sums)


def _ward(clusters: Clusters, order: list[int]) -> arrays.IntArray:
    """[clusters] the new cluster of each, from 0, those in ``order``."""
    weight = clusters.tokens[order]
    mean = clusters.load[order].reshape(len(order), -1) / weight[:, None]
    square = (mean**2).sum(axis=1)
    apart = np.maximum(square[:, None] + square - 2 * mean @ mean.T, 0.0)
    cost = apart * (weight[:, None] * weight / (weight[:, None] + weight))
    np.fill_diagonal(cost, np.inf)
    label, left = np.arange(len(order)), len(order)
    while left > MOST:
        one, other = sorted(divmod(int(cost.argmin()), len(order)))
        both = weight[one] + weight[other]
        # Lance and Williams' update of Ward's costs.
        joined = (weight + weight[one]) * cost[one] + (weight + weight[other]) * cost[other]
        joined = (joined - weight * cost[one, other]) / (weight + both)
        joined[[one, other]] = np.inf
        cost[one], cost[:, one] = joined, joined
        cost[other], cost[:, other] = np.inf, np.inf
        weight[one] = both
        label[label == other] = one
        left -= 1
    return np.unique(label, return_inverse=True)[1]
