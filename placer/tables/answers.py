"""How much further from the mean of all requests answers are than their prompts' tokens foretell.

Much of a prompt is what any prompt has, or in no table: the mean of its tokens' chances is then too
near to all requests'. Where tables are thin, or tokens say little of what follows, it is too far.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.tables.counts import TokenTable
from placer.tables.factors import Factors, thinned
from placer.tables.vocabulary import token_identity
from placer.trace import Trace


class Answered(NamedTuple):
    """A request whose tokens were counted.

    known:      [some] identities of the tokens that are known before it runs
    tokens:     [tokens] identities of those that were counted
    expert_ids: [tokens, layers, top_k] their experts
    first:      of those, the first that is foretold
    """

    known: IntArray
    tokens: IntArray
    expert_ids: IntArray
    first: int


def halves(trace: Trace) -> Iterator[Answered]:
    """Of sequences that do not tell where an answer begins: what their first half foretells of the
    second."""
    tokens, start = token_identity(trace), 0
    for length in trace.seq_lens.tolist():
        own, half = slice(start, start + length), length // 2
        if half:
            yield Answered(tokens[own][:half], tokens[own], trace.expert_ids[own], half)
        start += length


def further(table: TokenTable, used: Factors, requests: Iterable[Answered]) -> float:
    """The slope of the regression, over requests, of the experts that answers use on those that
    known tokens foretell: of new requests, so that each is foretold without what was counted of
    itself. 1 where nothing can be told.

    used: ``factors`` of the table, in which it is done
    """
    length = np.sqrt((used.basis**2).sum(axis=1))  # of one of each factor, in cells' chances
    sums = used.weights.astype(np.float64) * table.times[:, None]
    foretold, answers = [], []
    for one in requests:
        own = _weights(used, table, one.expert_ids)
        foretold.append(_without(table, sums, one, own) * length)
        answers.append(own[one.first :].mean(axis=0) * length)
    return _slope(np.array(foretold), np.array(answers)) if foretold else 1.0


def _weights(used: Factors, table: TokenTable, expert_ids: IntArray) -> FloatArray:
    """[tokens, width] of each factor, as if a token were all that is known of its kind."""
    layers, _, experts = table.counts.shape
    kept = thinned(layers, experts)
    cells = used.basis.reshape(-1, len(kept), experts)
    square = np.maximum((used.basis**2).sum(axis=1), np.finfo(float).tiny)
    found = np.zeros((len(expert_ids), len(cells)))
    for at, layer in enumerate(kept):
        found += cells[:, at].T[expert_ids[:, layer]].sum(axis=1)
    return found * (used.every / square)


def _without(table: TokenTable, sums: FloatArray, one: Answered, own: FloatArray) -> FloatArray:
    """[width] the mean of what other requests' tokens foretell by the known ones; a token that
    nobody else has is in no table, and foretells what all tokens do.

    sums: [rows, width] of all tokens of a kind; own: [tokens, width] of the request's
    """
    kinds, at = np.unique(table.vocabulary.rows(one.tokens), return_inverse=True)
    mine = np.zeros((len(kinds), own.shape[1]))
    np.add.at(mine, at, own)
    rows = table.vocabulary.rows(one.known)
    place = np.searchsorted(kinds, rows).clip(max=len(kinds) - 1)
    is_mine = kinds[place] == rows
    times = table.times[rows] - is_mine * np.bincount(at)[place]
    rest = sums[rows] - is_mine[:, None] * mine[place]
    known = times > 0
    unknown = sums[-1] * ((~known).sum() / table.times[-1])
    total: FloatArray = (rest[known] / times[known, None]).sum(axis=0) + unknown
    return total / len(rows)


def _slope(foretold: FloatArray, answers: FloatArray) -> float:
    """The less sure it is, the nearer to 1: as if that had been known to be right within 1."""
    count = len(foretold)
    if count < 3:
        return 1.0
    x, y = foretold - foretold.mean(axis=0), answers - answers.mean(axis=0)
    squares, products = (x * x).sum(axis=1), (x * y).sum(axis=1)
    whole = squares.sum()
    rest = whole - squares * (count / (count - 1))  # without each, by their own mean
    if not (rest > 1e-9 * np.square(foretold).sum()).all():  # all are alike, but one at most
        return 1.0
    without = (products.sum() - products * (count / (count - 1))) / rest
    error = np.square(without - without.mean()).sum() * (count - 1) / count  # the jackknife's
    found = (products.sum() / whole + error) / (1 + error)
    return round(float(max(found, 0.0)), 6)  # alike in whatever order they came
