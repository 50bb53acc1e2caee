"""One decision after another, compiled where Numba is there; as plain NumPy it decides alike.

All in one file, since Numba's cache looks at the time stamp of the caller's file alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from controller.router.scheduling.lookup import WHOLE, Tables, rows_of
from controller.router.scheduling.pool import Ranks
from placer.arrays import BoolArray, FloatArray, IntArray

try:
    from numba import njit
except ModuleNotFoundError:
    njit = None  # type: ignore[assignment]

Kernel = Callable[..., Any]

SECONDS, ROUND_MASK, LEAST_LOADED, ELDR = range(4)
MOST_SCORED = 1024  # tokens of a prompt that are looked up, evenly spread
WINDOW = 8  # requests a rank, at the end of which ranks are to have as much to do
SLACK = 1.4  # how loosely, on the way there
LEAST_STEP = 0.05  # of a rank's price, for a request of mean size
MOST_DEAR = 16.0  # mean gains: a rank that nobody can go to for long has no other price for it
MEMORY = 1000  # requests after which what was learnt fades
SURE = 0.999  # no expert is surer
LEAST_GAIN_S = 1e-15  # where nothing is gained anywhere, backlog decides
# Places of what is fitted to the stream.
GAIN, TOKENS, SQUARES, GENERATED, CHOSEN, ENDED = range(6)
# Columns of what is told of a decision.
(
    SHARE,
    MEAN_SHARE,
    SAVED,
    CACHED,
    ADDED,
    BACKLOG,
    MEAN_BACKLOG,
    LEFT,
    NEED,
    COMING,
    SCORED,
) = range(11)
TOLD, FIGURES = 7, 11  # the first are a Why's


def compiled(function: Kernel) -> Kernel:
    if njit is None:
        return function
    found: Kernel = njit(cache=True, nogil=True, error_model="numpy")(function)
    return found


class Costs(NamedTuple):
    """GPU seconds of hardware and model.

    local_s:   saved by a token all of whose activations are local
    prefill_s: of computing a token of a prompt
    read_s:    of reading an expert of one layer once
    band:      of ``eldr``: how far below the best a similarity may be, as a share
    """

    local_s: float
    prefill_s: float
    read_s: float
    band: float = 0.05


class Case(NamedTuple):
    """A request as ranks see it.

    share:     [R] of its experts at home
    added:     [engines] experts that a step has to read for it beside those read anyway
    left:      [R] tokens to compute
    need:      tokens of KV
    generated: tokens that it is expected to generate
    cached:    [R] tokens of its prompt that a rank has
    """

    share: FloatArray
    added: FloatArray
    left: FloatArray
    need: float
    generated: float
    cached: FloatArray


def _summed(tables: Tables, tokens: IntArray, sums: IntArray) -> int:
    stride = max(-(-len(tokens) // MOST_SCORED), 1)
    rows = rows_of(tables, tokens[::stride])
    if not len(rows):
        sums[:] = tables.values[-1]
        return 1
    sums[:] = tables.values.take(rows, axis=0).sum(axis=0, dtype=np.int64)
    return len(rows)


def _summed_in_loops(tables: Tables, tokens: IntArray, sums: IntArray) -> int:
    """Eight rows at a time: reading them is most of the work, and they come at once."""
    row, values = tables.row, tables.values
    last, columns, ids = len(values) - 1, values.shape[1], len(row)
    stride = max(-(-len(tokens) // MOST_SCORED), 1)
    count = -(-len(tokens) // stride)
    rows = np.empty(max(count, 1), dtype=np.uint64)
    rows[0] = last
    for at in range(count):
        token = tokens[at * stride]
        rows[at] = row[token] if 0 <= token < ids else last
    total = np.zeros(columns, dtype=np.int32)
    whole = len(rows) // 8 * 8
    for at in range(0, whole, 8):
        a, b, c, d = rows[at], rows[at + 1], rows[at + 2], rows[at + 3]
        e, f, g, h = rows[at + 4], rows[at + 5], rows[at + 6], rows[at + 7]
        for x in range(columns):
            total[x] += (
                (np.int32(values[a, x]) + values[b, x] + values[c, x] + values[d, x])
                + (np.int32(values[e, x]) + values[f, x] + values[g, x] + values[h, x])
            )  # fmt: skip
    for at in range(whole, len(rows)):
        only = rows[at]
        for x in range(columns):
            total[x] += values[only, x]
    sums[:] = total
    return len(rows)


summed = _summed if njit is None else compiled(_summed_in_loops)


@compiled
def seen_by(
    ranks: Ranks, tables: Tables, sums: IntArray, scored: int, of: tuple[float, float, FloatArray]
) -> Case:
    """of: tokens of the prompt, tokens it is expected to generate, [R] tokens cached"""
    length, generated, cached = of
    share = np.where(ranks.chance > 0, ranks.chance, sums[ranks.column] / (scored * WHOLE))
    width = len(tables.basis)
    added = np.zeros(len(ranks.missing))
    if width > 0:
        factors = sums[len(sums) - width :] / scored
        added = np.maximum(np.dot(ranks.missing, factors), 0.0)
    left = length - cached + generated
    return Case(share, added, left, length + generated, generated, cached)


@compiled
def savings(ranks: Ranks, case: Case, costs: Costs) -> FloatArray:
    """[R] GPU seconds that a request saves on each rank, less those that it costs there alone."""
    reading = costs.read_s * case.generated * case.added
    return (
        costs.local_s * case.left * case.share
        + costs.prefill_s * case.cached
        - reading[ranks.engine]
    )


@compiled
def admitted(ranks: Ranks, need: float) -> BoolArray:
    """[R] where it may go: where its KV fits, or else where any does, or else where it is open."""
    room = ranks.kv - ranks.held
    found = ranks.open & (room >= need)
    if not found.any():
        found = ranks.open & (room > 0)
    if not found.any():
        found = ranks.open.copy()
    return found


@compiled
def values(
    rule: int, ranks: Ranks, case: Case, band: float, saved: FloatArray, may: BoolArray, dear: Any
) -> FloatArray:
    """[R] what a rule makes the largest of, where the request may go.

    dear: GPU seconds of a token: [R] on each rank, and for each token of backlog
    """
    if rule == SECONDS:
        of_rank, of_backlog = dear
        value = saved - case.left * (of_rank + of_backlog * ranks.backlog)
    elif rule == ROUND_MASK:
        fewest = ranks.sent[may].min()
        value = np.where(ranks.sent == fewest, case.share, -np.inf)
    elif rule == LEAST_LOADED:
        value = -ranks.backlog
    else:
        near = case.share >= (1 - band) * case.share[may].max()
        value = np.where(near, -ranks.backlog, -np.inf)
    return np.where(may, value, -np.inf)


@compiled
def slack(ranks: Ranks, fitted: FloatArray) -> float:
    """Tokens that a rank may be ahead for a mean gain: as many requests as the square of those that
    it will still get in this window, at most a window's, and of the size that a token's request
    has in the mean. So what is uneven early in a window is made up for until its end."""
    opened = max(ranks.open.sum(), 1)
    window = WINDOW * opened
    left = (window - fitted[CHOSEN] % window) / opened
    size = fitted[SQUARES] / max(fitted[TOKENS], 1.0)
    return min(SLACK * left * left, WINDOW) * max(size, 1.0)


@compiled
def charge(ranks: Ranks, fitted: FloatArray, best: int, tokens: float) -> None:
    """Prices after a rank got tokens: a step of the stochastic subgradient of "as many tokens on
    each rank", which gets shorter as the stream goes on."""
    count = max(ranks.open.sum(), 1)
    step = max(1 / np.sqrt(max(fitted[CHOSEN] / count, 1.0)), LEAST_STEP)
    step *= tokens / max(fitted[TOKENS], 1.0)
    ranks.dear[:] -= ranks.open * (step / count)
    ranks.dear[best] += step
    ranks.dear[:] = np.minimum(np.maximum(ranks.dear, -MOST_DEAR), MOST_DEAR)


@compiled
def read(ranks: Ranks, tables: Tables, engine: int, factors: FloatArray, sign: float) -> None:
    """The engine's steps read what a request needs from now on, or (sign -1) no longer."""
    chance = np.minimum(np.maximum(np.dot(factors, tables.basis) / tables.every, 0.0), SURE)
    ranks.unread[engine] += sign * np.log1p(-chance)
    ranks.missing[engine] = np.dot(tables.basis, np.exp(ranks.unread[engine]))


@compiled
def one(
    rule: int,
    ranks: Ranks,
    tables: Tables,
    costs: Costs,
    fitted: FloatArray,
    tokens: IntArray,
    of: tuple[float, float, FloatArray],
    sums: IntArray,
    told: FloatArray,
    counts: bool,
) -> int:
    """The rank for one request. counts: whether it is the rank's from now on."""
    scored = summed(tables, tokens, sums)
    case = seen_by(ranks, tables, sums, scored, of)
    saved, may = savings(ranks, case, costs), admitted(ranks, case.need)
    gain_s = max(fitted[GAIN], LEAST_GAIN_S)
    dear = (gain_s * ranks.dear, gain_s / slack(ranks, fitted))
    value = values(rule, ranks, case, costs.band, saved, may, dear)
    best = int(value.argmax())
    mean_s = saved[may].mean()
    engine, left = ranks.engine[best], case.left[best]
    told[SHARE], told[MEAN_SHARE] = case.share[best], case.share[may].mean()
    told[SAVED], told[CACHED] = saved[best] - mean_s, case.cached[best]
    told[ADDED], told[BACKLOG] = case.added[engine], ranks.backlog[best]
    told[MEAN_BACKLOG] = ranks.backlog[ranks.open].mean()
    told[LEFT], told[NEED] = left, case.need
    told[COMING], told[SCORED] = case.generated, scored
    if counts:
        fitted[CHOSEN] += 1
        rate = 1 / min(fitted[CHOSEN], MEMORY)
        fitted[TOKENS] += (left - fitted[TOKENS]) * rate
        fitted[SQUARES] += (left * left - fitted[SQUARES]) * rate
        gain_s = (saved[may].max() - mean_s) / max(left, 1.0)
        fitted[GAIN] += (gain_s - fitted[GAIN]) * rate
        ranks.backlog[best] += left
        ranks.held[best] += case.need
        ranks.sent[best] += 1
        charge(ranks, fitted, best, left)
        width = len(tables.basis)
        if width > 0 and case.generated > 0:
            read(ranks, tables, engine, sums[len(sums) - width :] / scored, 1.0)
    return best


@compiled
def many(
    rule: int,
    ranks: Ranks,
    tables: Tables,
    costs: Costs,
    fitted: FloatArray,
    tokens: IntArray,
    ends: IntArray,
    most: IntArray,
    sums: IntArray,
    told: FloatArray,
) -> IntArray:
    """[requests] the rank of each, one after another, without prefixes.

    tokens: of all prompts, laid end to end; ends: [requests] of each
    sums: [requests, columns] and told: [requests, ...] for what ``one`` says of each
    """
    found = np.empty(len(ends), dtype=np.int64)
    nothing = np.zeros(len(ranks.engine))
    begin = 0
    for at in range(len(ends)):
        end = ends[at]
        expected = min(float(most[at]), fitted[GENERATED])
        of = (float(end - begin), expected, nothing)
        prompt = tokens[begin:end]
        found[at] = one(rule, ranks, tables, costs, fitted, prompt, of, sums[at], told[at], True)
        begin = end
    return found
