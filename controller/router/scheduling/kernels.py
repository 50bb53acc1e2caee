"""One decision after another, compiled where Numba is there; as plain NumPy it decides alike.

All in one file, since Numba's cache looks at the time stamp of the caller's file alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from controller.router.scheduling.lookup import WHOLE, Tables, rows_of
from controller.router.scheduling.pool import Case, Ranks
from placer.arrays import BoolArray, FloatArray, IntArray
from placer.cost.requests import Costs

try:
    from numba import njit
except ModuleNotFoundError:
    njit = None  # type: ignore[assignment]

Kernel = Callable[..., Any]

SECONDS, ROUND_MASK, LEAST_LOADED, ELDR = range(4)
MOST_SCORED = 1024  # tokens of a prompt that are looked up, evenly spread
WINDOW = 8  # requests a rank, after which ranks got as many tokens
STEP = 0.2  # of a price, in mean gains, for all tokens too many
MEMORY = 1000  # requests after which what was learnt fades
SURE = 0.999  # no expert is surer
LEAST_S = 1e-15  # of a token of backlog: it decides where nothing else does, then what was given
# Places of what is fitted to the stream.
GAIN, TOKENS, ERRORS, GENERATED, CHOSEN, ENDED, SPAN, REST = range(8)


def compiled(function: Kernel) -> Kernel:
    if njit is None:
        return function
    found: Kernel = njit(cache=True, nogil=True, error_model="numpy")(function)
    return found


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
    # All that the engine's steps read, by each of its requests: they wait for what is added.
    read = (ranks.reads + (ranks.running + 1) * case.added) / (ranks.running.mean() + 1)
    reading = costs.read_s * case.generated * read
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
def room(ranks: Ranks, fitted: FloatArray) -> FloatArray:
    """[R] tokens that each still gets in this window, so that all get as many. What a rank is
    behind the others by more than a window's requests, as a slow one is, counts against it."""
    opened = max(ranks.open.sum(), 1)
    behind = ranks.backlog - ranks.given
    usual = ((ranks.open * behind).sum() + fitted[SPAN] * fitted[TOKENS]) / opened
    got = ranks.given + np.maximum(behind - usual, 0.0)
    return ((ranks.open * got).sum() + fitted[REST] * fitted[TOKENS]) / opened - got


@compiled
def values(
    rule: int, ranks: Ranks, case: Case, costs: Costs, saved: FloatArray, may: BoolArray,
    fitted: FloatArray,
) -> FloatArray:  # fmt: skip
    """[R] what a rule makes the largest of, where the request may go."""
    if rule == SECONDS:
        # A step waits for its engine's fullest rank: that has room for what a length may be off.
        left, wait_s = room(ranks, fitted), costs.local_s * (fitted[SPAN] > 0)
        spare = np.sqrt(fitted[ERRORS]) * np.minimum(ranks.others, 1.0) + 1e-6 * fitted[TOKENS]
        value = (
            saved
            - case.left * (ranks.dear + LEAST_S * (ranks.backlog + ranks.given / MEMORY))
            - wait_s * ranks.others * np.maximum(case.left - spare - left, 0.0)
        )
        may = may & (left >= np.minimum(spare, left[may].max()))
    elif rule == ROUND_MASK:
        fewest = ranks.sent[may].min()
        value = np.where(ranks.sent == fewest, case.share, -np.inf)
    elif rule == LEAST_LOADED:
        value = -ranks.backlog
    else:
        near = case.share >= (1 - costs.band) * case.share[may].max()
        value = np.where(near, -ranks.backlog, -np.inf)
    return np.where(may, value, -np.inf)


def _drawn(ranks: Ranks) -> FloatArray:
    value = np.where(ranks.open, ranks.recent.T - ranks.dear, -np.inf)
    return np.bincount(value.argmax(axis=1), ranks.sizes, len(ranks.dear)).astype(np.float64)


def _drawn_in_loops(ranks: Ranks) -> FloatArray:
    """Requests inside, of which many are compared at once."""
    recent, count = ranks.recent, len(ranks.sizes)
    best, most = np.zeros(count, dtype=np.int64), np.full(count, -np.inf)
    for rank in range(len(recent)):
        dear = ranks.dear[rank] if ranks.open[rank] else np.inf
        for at in range(count):
            value = recent[rank, at] - dear
            best[at] = rank if value > most[at] else best[at]
            most[at] = value if value > most[at] else most[at]
    found = np.zeros(len(recent))
    for at in range(count):
        found[best[at]] += ranks.sizes[at]
    return found


drawn = _drawn if njit is None else compiled(_drawn_in_loops)  # [R] recent tokens, at these prices


@compiled
def price(ranks: Ranks, fitted: FloatArray) -> None:
    """Towards prices at which recent requests would fill what room there is: a subgradient step."""
    due, got = ranks.open * np.maximum(room(ranks, fitted), 0.0), drawn(ranks)
    off = got / max(got.sum(), 1.0) - due / max(due.sum(), 1.0)
    ranks.dear[:] += STEP * fitted[GAIN] * off


@compiled
def charge(ranks: Ranks, fitted: FloatArray, best: int, tokens: float) -> None:
    """So many more tokens are a rank's. None is owed more than eight windows' of its own."""
    ranks.ahead[:] -= ranks.open * (tokens / max(ranks.open.sum(), 1))
    ranks.ahead[best] += tokens
    most = WINDOW * fitted[SPAN] / len(ranks.open) * max(fitted[TOKENS], 1.0)
    ranks.ahead[:] = np.minimum(np.maximum(ranks.ahead, -most), most)


@compiled
def learn(ranks: Ranks, fitted: FloatArray, at: int, tokens: float, thought: float) -> None:
    """A request ended and had generated so many tokens. at: its rank; -1 if that is gone"""
    fitted[ENDED] += 1
    rate = 1 / min(fitted[ENDED], MEMORY)
    mean = fitted[GENERATED] if rate < 1 else tokens
    fitted[GENERATED] = mean + (tokens - mean) * rate
    if at < 0:
        return
    charge(ranks, fitted, at, tokens - thought)
    if tokens > 0:
        off = tokens - mean * ranks.longer[at]
        fitted[ERRORS] += (off * off - fitted[ERRORS]) * rate
        ranks.ended[at] += 1
        weight = WINDOW + min(ranks.ended[at], MEMORY)  # at first it is as others are
        ranks.longer[at] += (tokens / fitted[GENERATED] - ranks.longer[at]) / weight


@compiled
def read(ranks: Ranks, tables: Tables, engine: int, factors: FloatArray, sign: float) -> None:
    """The engine's steps read what a request needs from now on, or (sign -1) no longer."""
    chance = np.minimum(np.maximum(np.dot(factors, tables.basis) / tables.every, 0.0), SURE)
    ranks.unread[engine] += sign * np.log1p(-chance)
    unread = np.exp(ranks.unread[engine])
    ranks.missing[engine] = np.dot(tables.basis, unread)
    ranks.reads[engine] = tables.every * (1 - unread).sum()
    ranks.running[engine] += sign


@compiled
def one(
    rule: int, ranks: Ranks, tables: Tables, costs: Costs, fitted: FloatArray, tokens: IntArray,
    of: tuple[float, float, FloatArray], sums: IntArray, told: FloatArray, counts: bool,
) -> int:  # fmt: skip
    """The rank for one request. counts: whether it is the rank's from now on.

    of: tokens of its prompt, tokens that it may generate, [R] tokens cached"""
    length, most, cached = of
    scored, expected = summed(tables, tokens, sums), fitted[GENERATED]
    case = seen_by(ranks, tables, sums, scored, (length, min(most, expected), cached))
    saved, may = savings(ranks, case, costs), admitted(ranks, case.need)
    best = int(values(rule, ranks, case, costs, saved, may, fitted).argmax())
    places, opened = may.sum(), max(ranks.open.sum(), 1)
    mean_s = (saved * may).sum() / places
    engine, left = ranks.engine[best], case.left[best]
    coming = min(most, expected * ranks.longer[best])
    booked = left - case.generated + coming
    share, backlog = (case.share * may).sum() / places, (ranks.backlog * ranks.open).sum() / opened
    told[0], told[1], told[2] = case.share[best], share, saved[best] - mean_s
    told[3], told[4], told[5] = case.cached[best], case.added[engine], ranks.backlog[best]
    told[6], told[7], told[8], told[9], told[10] = backlog, booked, case.need, coming, scored
    if counts:
        at = int(fitted[CHOSEN]) % len(ranks.sizes)
        ranks.recent[:, at], ranks.sizes[at] = saved / np.maximum(case.left, 1.0), left
        fitted[CHOSEN] += 1
        if fitted[SPAN] == 0:  # the very first
            fitted[SPAN] = fitted[REST] = WINDOW * len(ranks.open)
        rate = 1 / min(fitted[CHOSEN], MEMORY)
        fitted[TOKENS] += (left - fitted[TOKENS]) * rate
        gain_s = (saved[may].max() - mean_s) / max(left, 1.0)
        fitted[GAIN] += (gain_s - fitted[GAIN]) * rate
        ranks.backlog[best] += booked
        ranks.held[best] += case.need
        ranks.sent[best] += 1
        ranks.given[best] += booked
        charge(ranks, fitted, best, booked)
        fitted[REST] -= 1
        if fitted[REST] <= 0:
            fitted[SPAN] = fitted[REST] = WINDOW * len(ranks.open)
            ranks.given[:] = ranks.ahead / WINDOW  # what is uneven goes into as many windows
        if rule == SECONDS:
            price(ranks, fitted)
        width = len(tables.basis)
        if width > 0 and case.generated > 0:
            read(ranks, tables, engine, sums[len(sums) - width :] / scored, 1.0)
    return best


@compiled
def many(
    rule: int, ranks: Ranks, tables: Tables, costs: Costs, fitted: FloatArray, tokens: IntArray,
    ends: IntArray, most: IntArray, sums: IntArray, told: FloatArray,
) -> IntArray:  # fmt: skip
    """[requests] the rank of each, one after another, without prefixes.

    tokens: of all prompts, laid end to end; ends: [requests] of each
    sums: [requests, columns] and told: [requests, ...] for what ``one`` says of each
    """
    found = np.empty(len(ends), dtype=np.int64)
    nothing = np.zeros(len(ranks.engine))
    begin = 0
    for at in range(len(ends)):
        end = ends[at]
        of = (float(end - begin), float(most[at]), nothing)
        prompt = tokens[begin:end]
        found[at] = one(rule, ranks, tables, costs, fitted, prompt, of, sums[at], told[at], True)
        begin = end
    return found
