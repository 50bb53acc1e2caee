"""The engines of one pool, request by request: continuous and chunked batching, step after step, or
in one formula all steps until a request comes or leaves.

The ranks of an engine step together. In a step each rank decodes a token of every request that
runs there and prefills prompts, first come first served, up to its token budget; it takes

    overhead_s + max over ranks (max(dense_read_s, tokens * dense_token_s) + context * kv_token_s
                                 + requests whose prompts end * request_s)
               + experts_s(tokens of all ranks)

where ``experts_s`` is what placer's own score says of the placement that is served and the traffic
that comes, by the tokens of a step. A request starts where its whole KV fits, with what is cached
of its prompt; its first token comes with the last of its prompt.

Steps in which no prompt ends have the same tokens, and one of context more for each request:
    seconds of j such steps = each_s * j + more_s * j * (j - 1) / 2
of the rank that is slowest in the middle. Left out: that another is before or after; preemption.
"""

from typing import Any

import numpy as np

from controller.samples import GAP_BOUNDS, TTFT_BOUNDS
from placer.kernels import in_place
from simulations.caches import cached, forget, hold, leave, needs

GRID = 20  # seconds of a step's experts are told for 1, 2, 4, ... tokens of all ranks
SEATS = 512  # requests that run on a rank, at most
BEGAN, ENDED = 0, 1
NOBODY, NEVER = -1, 2**62  # a step that does not come
BOUNDS = np.array(TTFT_BOUNDS), np.array(GAP_BOUNDS)


@in_place
def _queue(s: Any, one: int, at: int) -> None:
    s.rank[one], s.following[one] = at, NOBODY
    if s.head[at] == NOBODY:
        s.head[at] = one
    else:
        s.following[s.tail[at]] = one
    s.tail[at] = one
    s.queued[at] += 1


@in_place
def _tell(s: Any, kind: int, one: int) -> None:
    if s.told[0] < len(s.events):
        s.events[s.told[0], 0], s.events[s.told[0], 1] = kind, one
        s.told[0] += 1


@in_place
def _finish(s: Any, engine: int, widest: int, every: int) -> None:
    """The steps that ran: everybody has as many tokens more."""
    end, many = s.end_s[engine], s.many[engine]
    took_s, now = end - s.begun_s[engine], s.steps[engine] + many
    gap = np.searchsorted(BOUNDS[1], took_s / many)
    s.steps[engine] = now
    s.busy_s[engine] += took_s
    for at in range(engine * widest, engine * widest + s.ranks[engine]):
        decoded = many * s.seated[at]
        s.decoded[engine] += decoded
        s.gaps[engine, gap] += decoded
        s.progress[at] += (many - 1) * s.chunk[at]
        s.prefilled[engine] += (many - 1) * s.chunk[at]
        s.context[at] += decoded + s.begun[at] - s.seated[at]
        for seat in range(s.seated[at], s.begun[at]):
            one = s.running[at, seat]
            s.first_s[one], s.ends[one] = end, now + s.output[one] - 1
            s.due[at] = min(s.due[at], s.ends[one])
            s.ttft[engine, np.searchsorted(BOUNDS[0], end - s.at_s[one])] += 1
            if one % every == 0:
                _tell(s, BEGAN, one)
        if s.due[at] <= now:
            _leave(s, engine, at, every)
        s.seated[at] = s.begun[at]


@in_place
def _leave(s: Any, engine: int, at: int, every: int) -> None:
    """Requests whose last token has come."""
    kept, s.due[at] = 0, NEVER
    for seat in range(s.begun[at]):
        one = s.running[at, seat]
        if s.ends[one] > s.steps[engine]:
            s.due[at] = min(s.due[at], s.ends[one])
            s.running[at, kept] = one
            kept += 1
            continue
        s.last_s[one] = s.end_s[engine]
        leave(s, one, at, True)
        s.context[at] -= s.prompt[one] + s.output[one]
        s.finished[engine] += 1
        s.prompts[engine] += s.prompt[one]
        if one % every == 0:
            _tell(s, ENDED, one)
    s.begun[at] = kept


@in_place
def _experts_s(table: Any, tokens: int) -> float:
    """Between two of the table's, as if it were straight."""
    power = min(int(np.log2(tokens)), GRID - 2)
    share = tokens / 2.0**power - 1
    return table[power] + (table[power + 1] - table[power]) * share


@in_place
def _begin(s: Any, engine: int, widest: int, speeds: Any, most: int, until: float) -> bool:
    """The next steps, if there is work; those after the first end by ``until``."""
    overhead_s, dense_read_s, dense_token_s, kv_token_s, budget, room_kv, _, prompts, new_s = speeds
    total, slowest, many = 0, 0.0, most
    for at in range(engine * widest, engine * widest + s.ranks[engine]):
        decodes = s.seated[at]
        room, tokens, begun = min(budget - decodes, prompts), decodes, decodes
        s.chunk[at] = 0
        while room > 0 and s.head[at] != NOBODY and begun < SEATS:
            one = s.head[at]
            if s.progress[at] == 0:
                if s.kv[at] > 0 and s.kv[at] + needs(s, one, at) > room_kv:
                    break
                s.progress[at] = cached(s, one, at)
                s.hits[engine] += s.progress[at]
                hold(s, one, at, room_kv)
            part = min(room, s.prompt[one] - s.progress[at])
            s.progress[at] += part
            room -= part
            tokens += part
            s.prefilled[engine] += part
            if s.progress[at] < s.prompt[one]:
                s.chunk[at] = part
                many = min(many, 1 + (s.prompt[one] - s.progress[at] - 1) // part)
                break
            many = 1
            s.progress[at] = 0
            s.head[at] = s.following[one]
            s.queued[at] -= 1
            s.running[at, begun] = one
            begun += 1
            s.context[at] += s.prompt[one]
        s.begun[at] = begun
        many = min(many, s.due[at] - s.steps[engine])
        if tokens > 0:
            took_s = max(dense_read_s, tokens * dense_token_s) + s.context[at] * kv_token_s
            slowest = max(slowest, took_s + (begun - decodes) * new_s)
        total += tokens
    if total == 0:
        return False
    even_s = overhead_s + _experts_s(s.table[engine], total)
    slow, pause_s = s.slow[engine], s.pause_s[engine]
    each_s, more_s = (even_s + slowest) * slow + pause_s, 0.0
    left_s = until - s.end_s[engine]
    many = 1 if pause_s > 0 else min(many, max(int(left_s / each_s), 1))
    if many > 1:
        slowest = 0.0
        for at in range(engine * widest, engine * widest + s.ranks[engine]):
            tokens = s.seated[at] + s.chunk[at]
            took_s = max(dense_read_s, tokens * dense_token_s) + s.context[at] * kv_token_s
            grows_s = s.seated[at] * kv_token_s
            if tokens > 0 and took_s + (many - 1) / 2 * grows_s > slowest:
                slowest = took_s + (many - 1) / 2 * grows_s
                each_s, more_s = (even_s + took_s) * slow, grows_s * slow
        many = min(many, max(int(left_s / (each_s + (many - 1) / 2 * more_s)), 1))
    s.begun_s[engine], s.each_s[engine], s.more_s[engine] = s.end_s[engine], each_s, more_s
    s.many[engine], s.pause_s[engine], s.busy[engine] = many, 0.0, 1
    s.end_s[engine] += _seconds(s, engine, many)
    return True


@in_place
def _seconds(s: Any, engine: int, many: int) -> float:
    """Of the first so many of the steps that run."""
    return s.each_s[engine] * many + s.more_s[engine] * (many * (many - 1) / 2)


@in_place
def _cut(s: Any, engine: int, now: float) -> None:
    """After the step that runs now there will be something else to do."""
    took_s = now - s.begun_s[engine]
    many = min(s.many[engine], int(took_s / s.each_s[engine]) + 1)
    while many > 1 and _seconds(s, engine, many - 1) >= took_s:
        many -= 1
    s.many[engine], s.end_s[engine] = many, s.begun_s[engine] + _seconds(s, engine, many)


@in_place
def _emptiest(s: Any, first: int, ranks: int) -> int:
    found = first
    for at in range(first, first + ranks):
        if s.begun[at] + s.queued[at] < s.begun[found] + s.queued[found]:
            found = at
    return found


@in_place
def _move(s: Any, engine: int, one: int, at: int, to: int, room: int) -> None:
    """A request that runs goes on elsewhere, with its KV."""
    has = s.prompt[one] + s.output[one] - (s.ends[one] - s.steps[engine])
    leave(s, one, at, False)
    s.context[at] -= has
    hold(s, one, to, room)
    s.context[to] += has
    s.running[to, s.seated[to]] = one
    s.seated[to] += 1
    s.begun[to] = s.seated[to]
    s.due[to] = min(s.due[to], s.ends[one])
    s.rank[one] = to


@in_place
def _resize(s: Any, engine: int, widest: int, room: int) -> None:
    """Between two steps: who must go elsewhere does, and new ranks get work."""
    first, before, after = engine * widest, s.ranks[engine], s.wanted[engine]
    s.ranks[engine] = after
    for at in range(first + after, first + before):
        for seat in range(s.seated[at]):
            _move(s, engine, s.running[at, seat], at, _emptiest(s, first, after), room)
        if s.progress[at] > 0:  # half a prompt is computed again
            leave(s, s.head[at], at, False)
        forget(s, at)
        one = s.head[at]
        while one != NOBODY:
            following = s.following[one]
            _queue(s, one, _emptiest(s, first, after))
            one = following
        s.seated[at] = s.begun[at] = s.queued[at] = s.progress[at] = 0
        s.head[at], s.due[at] = NOBODY, NEVER
    for to in range(first + before, first + after):
        while True:
            fullest = first
            for at in range(first, first + after):
                if s.seated[at] > s.seated[fullest]:
                    fullest = at
            if s.seated[fullest] <= s.seated[to] + 1:
                break
            s.seated[fullest] -= 1
            s.begun[fullest] = s.seated[fullest]
            _move(s, engine, s.running[fullest, s.seated[fullest]], fullest, to, room)


@in_place
def advance(s: Any, until: float, limit: float, widest: int, speeds: Any, every: int) -> None:
    """All steps that end until then. every: what comes of one of so many requests is told; if not
    of all, steps are computed together, up to ``limit``, before which nobody changes anything"""
    most = 1 if every == 1 else NEVER
    for engine in range(len(s.end_s)):
        while s.end_s[engine] <= until:
            if s.busy[engine]:
                _finish(s, engine, widest, every)
                s.busy[engine] = 0
            if s.wanted[engine] != s.ranks[engine]:
                _resize(s, engine, widest, speeds[5])
                s.pause_s[engine] += speeds[6]
            if not _begin(s, engine, widest, speeds, most, limit):
                break


@in_place
def arrive(s: Any, one: int, engine: int, at: int, now: float) -> None:
    if not s.busy[engine]:
        s.end_s[engine] = max(s.end_s[engine], now)
    elif s.many[engine] > 1:
        _cut(s, engine, now)
    _queue(s, one, at)


@in_place
def place(s: Any, one: int, now: float, widest: int) -> None:
    """To the engine that takes requests and has the fewest a rank, and there to the rank with the
    fewest."""
    best, fewest = 0, np.inf
    for engine in range(len(s.end_s)):
        first, ranks = engine * widest, s.wanted[engine]
        here = slice(first, first + ranks)
        load = (s.begun[here].sum() + s.queued[here].sum()) / ranks
        if not s.closed[engine] and load < fewest:
            best, fewest = engine, load
    arrive(s, one, best, _emptiest(s, best * widest, s.wanted[best]), now)


@in_place
def serve_many(
    s: Any, first: int, last: int, until: float, every: int, widest: int, speeds: Any, at: int
) -> int:
    """Requests one after another, the first to rank ``at`` if that is one; stops at one of every
    ``every`` that somebody else is to place, and returns it."""
    for one in range(first, last):
        advance(s, s.at_s[one], until, widest, speeds, every)
        if one == first and at != NOBODY:
            arrive(s, one, at // widest, at, s.at_s[one])
        elif one % every == 0:
            return one
        else:
            place(s, one, s.at_s[one], widest)
    advance(s, until, until, widest, speeds, every)
    return last
