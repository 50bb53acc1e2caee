"""The engines of one pool, request by request: continuous and chunked batching, step after step.

The ranks of an engine step together. In a step each rank decodes a token of every request that
runs there and prefills prompts, first come first served, up to its token budget; it takes

    overhead_s + max over ranks (max(dense_read_s, tokens * dense_token_s) + context * kv_token_s)
               + experts_s(tokens of a mean rank)

where ``experts_s`` is what placer's own score says of the placement that is served and the traffic
that comes, by the tokens of a step. A request starts where its whole KV fits. Its first token comes
with the last of its prompt.

What is left out: preemption, and that the tokens of one step are routed otherwise than the mean.
"""

from typing import Any

import numba
import numpy as np

from controller.samples import GAP_BOUNDS, TTFT_BOUNDS

GRID = 15  # seconds of a step's experts are told for 1, 2, 4, ... tokens a GPU
SEATS = 512  # requests that run on a rank, at most
BEGAN, ENDED = 0, 1
NOBODY = -1
BOUNDS = np.array(TTFT_BOUNDS), np.array(GAP_BOUNDS)

compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@compiled
def _queue(s: Any, one: int, at: int) -> None:
    s.rank[one], s.following[one] = at, NOBODY
    if s.head[at] == NOBODY:
        s.head[at] = one
    else:
        s.following[s.tail[at]] = one
    s.tail[at] = one
    s.queued[at] += 1


@compiled
def _tell(s: Any, kind: int, one: int) -> None:
    if s.told[0] < len(s.events):
        s.events[s.told[0], 0], s.events[s.told[0], 1] = kind, one
        s.told[0] += 1


@compiled
def _finish(s: Any, engine: int, widest: int, every: int) -> None:
    """The step that ran: everybody has a token more."""
    end = s.end_s[engine]
    for at in range(engine * widest, engine * widest + s.ranks[engine]):
        kept = 0
        for seat in range(s.begun[at]):
            one = s.running[at, seat]
            if seat >= s.seated[at]:
                s.first_s[one] = end
                s.ttft[engine, np.searchsorted(BOUNDS[0], end - s.at_s[one])] += 1
                if one % every == 0:
                    _tell(s, BEGAN, one)
            else:
                s.gaps[engine, np.searchsorted(BOUNDS[1], end - s.last_s[one])] += 1
            s.last_s[one] = end
            s.left[one] -= 1
            s.context[at] += 1
            if s.left[one] == 0:
                s.kv[at] -= s.prompt[one] + s.output[one]
                s.context[at] -= s.prompt[one] + s.output[one]
                s.finished[engine] += 1
                s.prompts[engine] += s.prompt[one]
                if one % every == 0:
                    _tell(s, ENDED, one)
            else:
                s.running[at, kept] = one
                kept += 1
        s.seated[at] = s.begun[at] = kept


@compiled
def _experts_s(table: Any, tokens: float) -> float:
    """Between two of the table's, as if it were straight."""
    if tokens <= 1:
        return table[0]
    power = min(int(np.log2(tokens)), GRID - 2)
    share = tokens / 2.0**power - 1
    return table[power] + (table[power + 1] - table[power]) * share


@compiled
def _begin(s: Any, engine: int, widest: int, speeds: Any) -> bool:
    """The next step, if there is work."""
    overhead_s, dense_read_s, dense_token_s, kv_token_s, budget, room_kv, _ = speeds
    total, slowest = 0, 0.0
    for at in range(engine * widest, engine * widest + s.ranks[engine]):
        decodes = s.seated[at]
        room, tokens, begun = budget - decodes, decodes, decodes
        while room > 0 and s.head[at] != NOBODY and begun < SEATS:
            one = s.head[at]
            if s.progress[at] == 0:
                needs = s.prompt[one] + s.output[one]
                if s.kv[at] + needs > room_kv and s.kv[at] > 0:
                    break
                s.kv[at] += needs
            part = min(room, s.prompt[one] - s.progress[at])
            s.progress[at] += part
            room -= part
            tokens += part
            s.prefilled[engine] += part
            if s.progress[at] < s.prompt[one]:
                break
            s.progress[at] = 0
            s.head[at] = s.following[one]
            s.queued[at] -= 1
            s.running[at, begun] = one
            begun += 1
            s.context[at] += s.prompt[one]
        s.begun[at] = begun
        s.decoded[engine] += decodes
        if tokens > 0:
            took_s = max(dense_read_s, tokens * dense_token_s) + s.context[at] * kv_token_s
            slowest = max(slowest, took_s)
        total += tokens
    if total == 0:
        return False
    experts_s = _experts_s(s.table[engine], total / s.ranks[engine])
    took_s = (overhead_s + slowest + experts_s) * s.slow[engine] + s.pause_s[engine]
    s.pause_s[engine], s.busy[engine] = 0.0, 1
    s.steps[engine] += 1
    s.busy_s[engine] += took_s
    s.end_s[engine] += took_s
    return True


@compiled
def _emptiest(s: Any, first: int, ranks: int) -> int:
    found = first
    for at in range(first, first + ranks):
        if s.begun[at] + s.queued[at] < s.begun[found] + s.queued[found]:
            found = at
    return found


@compiled
def _move(s: Any, one: int, at: int, to: int) -> None:
    """A request that runs goes on elsewhere, with its KV."""
    needs, has = s.prompt[one] + s.output[one], s.prompt[one] + s.output[one] - s.left[one]
    s.kv[at] -= needs
    s.context[at] -= has
    s.kv[to] += needs
    s.context[to] += has
    s.running[to, s.seated[to]] = one
    s.seated[to] += 1
    s.begun[to] = s.seated[to]
    s.rank[one] = to


@compiled
def _resize(s: Any, engine: int, widest: int) -> None:
    """Between two steps: who must go elsewhere does, and new ranks get work."""
    first, before, after = engine * widest, s.ranks[engine], s.wanted[engine]
    s.ranks[engine] = after
    for at in range(first + after, first + before):
        for seat in range(s.seated[at]):
            _move(s, s.running[at, seat], at, _emptiest(s, first, after))
        if s.progress[at] > 0:  # half a prompt is computed again
            s.kv[at] -= s.prompt[s.head[at]] + s.output[s.head[at]]
        one = s.head[at]
        while one != NOBODY:
            following = s.following[one]
            _queue(s, one, _emptiest(s, first, after))
            one = following
        s.seated[at] = s.begun[at] = s.queued[at] = s.progress[at] = 0
        s.head[at] = NOBODY
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
            _move(s, s.running[fullest, s.seated[fullest]], fullest, to)


@compiled
def advance(s: Any, until: float, widest: int, speeds: Any, every: int) -> None:
    """All steps that end until then. every: what comes of one of so many requests is told"""
    for engine in range(len(s.end_s)):
        while s.end_s[engine] <= until:
            if s.busy[engine]:
                _finish(s, engine, widest, every)
                s.busy[engine] = 0
            if s.wanted[engine] != s.ranks[engine]:
                _resize(s, engine, widest)
                s.pause_s[engine] += speeds[6]
            if not _begin(s, engine, widest, speeds):
                break


@compiled
def arrive(s: Any, one: int, engine: int, at: int, now: float) -> None:
    if not s.busy[engine]:
        s.end_s[engine] = max(s.end_s[engine], now)
    _queue(s, one, at)


@compiled
def serve_many(
    s: Any, first: int, last: int, until: float, every: int, widest: int, speeds: Any
) -> int:
    """Requests one after another, each to the rank with the fewest; stops at one of every
    ``every`` that somebody else is to place, and returns it."""
    for one in range(first, last):
        advance(s, s.at_s[one], widest, speeds, every)
        if one % every == 0:
            return one
        best, fewest = 0, np.inf
        for engine in range(len(s.end_s)):
            if s.closed[engine]:
                continue
            for at in range(engine * widest, engine * widest + s.wanted[engine]):
                load = s.begun[at] + s.queued[at]
                if load < fewest:
                    best, fewest = at, load
        arrive(s, one, best // widest, best, s.at_s[one])
    advance(s, until, widest, speeds, every)
    return last
