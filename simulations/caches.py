"""Ranks' prefix caches, compiled: blocks of prompts, the least recently used given up first, in the
KV room that running requests leave free.

A prompt's blocks are there for others from the step that it begins in. Blocks that several running
requests have take their room once. Those that nobody runs with wait in a rank's line, in the order
in which their requests ended, of each request the end before the beginning; what a request had of
its own waits there too, as in vLLM, and is of no use to anybody. A line has places that were taken
up again since, which are passed over.

Numba's cache does not see changes of this file: touch kernels.py, too.
"""

from typing import Any

import numpy as np

from placer.kernels import in_place

NOWHERE = -1
KEY, USES, NEWEST = range(3)  # columns of a State's cached, line and waiting
OLDEST, LATEST, IDLE = range(3)
BEHIND, OWN = range(2)
SPREADS = np.uint64(0x9E3779B97F4A7C15)  # Knuth's: keys over a table


@in_place
def _slot(s: Any, at: int, block: int) -> int:
    """Of a rank's block in the table, whether it is cached or not."""
    key = at * s.told[2] + block
    mask = len(s.cached) - 1
    found = np.int64(np.uint64(key) * SPREADS >> np.uint64(32)) & mask
    while s.cached[found, KEY] != NOWHERE and s.cached[found, KEY] != key:
        found = (found + 1) & mask
    s.cached[found, KEY] = key
    return int(found)


@in_place
def _chain(s: Any, one: int) -> tuple[int, int]:
    if len(s.begins) == 1:
        return 0, 0
    return s.begins[one], s.begins[one + 1]


@in_place
def cached(s: Any, one: int, at: int) -> int:
    """Tokens of a prompt that its rank has. The last token is always computed."""
    first, last = _chain(s, one)
    last = min(last, first + (s.prompt[one] - 1) // s.told[1])
    for place in range(first, last):
        slot = _slot(s, at, s.blocks[place])
        if s.cached[slot, USES] == 0 and s.cached[slot, NEWEST] == NOWHERE:
            return int((place - first) * s.told[1])
    return int((last - first) * s.told[1])


@in_place
def needs(s: Any, one: int, at: int) -> int:
    """Tokens of room that it takes beside those of requests that run."""
    first, last = _chain(s, one)
    found = s.prompt[one] + s.output[one]
    for place in range(first, last):
        if s.cached[_slot(s, at, s.blocks[place]), USES] > 0:
            found -= s.told[1]
    return int(found)


@in_place
def hold(s: Any, one: int, at: int, room: int) -> None:
    """It runs on the rank, which has room for so many tokens in all."""
    s.kv[at] += needs(s, one, at)
    first, last = _chain(s, one)
    for place in range(first, last):
        slot = _slot(s, at, s.blocks[place])
        if s.cached[slot, NEWEST] != NOWHERE:
            s.cached[slot, NEWEST] = NOWHERE
            s.line[at, IDLE] -= s.told[1]
        s.cached[slot, USES] += 1
    if len(s.begins) > 1:
        _evict(s, at, room)


@in_place
def leave(s: Any, one: int, at: int, waits: bool) -> None:
    """It runs there no more. waits: what it had, in the rank's line; once a request, at its end"""
    first, last = _chain(s, one)
    own = s.prompt[one] + s.output[one] - (last - first) * s.told[1]
    s.kv[at] -= own
    if len(s.begins) == 1:
        return
    if waits:
        s.waiting[len(s.blocks) + one, OWN] = own
        _append(s, at, len(s.blocks) + one, own)
    for place in range(last - 1, first - 1, -1):
        slot = _slot(s, at, s.blocks[place])
        s.cached[slot, USES] -= 1
        if s.cached[slot, USES] == 0:
            s.kv[at] -= s.told[1]
            if waits:
                s.cached[slot, NEWEST] = place
                _append(s, at, place, s.told[1])


@in_place
def _append(s: Any, at: int, place: int, tokens: int) -> None:
    s.waiting[place, BEHIND] = NOWHERE
    if s.line[at, OLDEST] == NOWHERE:
        s.line[at, OLDEST] = place
    else:
        s.waiting[s.line[at, LATEST], BEHIND] = place
    s.line[at, LATEST] = place
    s.line[at, IDLE] += tokens


@in_place
def _evict(s: Any, at: int, room: int) -> None:
    over = s.kv[at] + s.line[at, IDLE] - room
    while over > 0 and s.line[at, OLDEST] != NOWHERE:
        place = s.line[at, OLDEST]
        if place >= len(s.blocks):
            gone = min(over, s.waiting[place, OWN])
            s.waiting[place, OWN] -= gone
            over -= gone
            s.line[at, IDLE] -= gone
            if s.waiting[place, OWN] > 0:
                return
        else:
            slot = _slot(s, at, s.blocks[place])
            if s.cached[slot, NEWEST] == place:
                s.cached[slot, NEWEST] = NOWHERE
                over -= s.told[1]
                s.line[at, IDLE] -= s.told[1]
        s.line[at, OLDEST] = s.waiting[place, BEHIND]


@in_place
def forget(s: Any, at: int) -> None:
    """All that a rank has, whose memory is gone."""
    s.line[at, IDLE], s.line[at, OLDEST] = 0, NOWHERE
    if len(s.begins) > 1:
        for slot in range(len(s.cached)):
            if s.cached[slot, KEY] // s.told[2] == at:
                s.cached[slot, USES], s.cached[slot, NEWEST] = 0, NOWHERE


def table_of(ranks: int, blocks: int, uses: int) -> int:
    """Places of a table of ranks' blocks, a power of two: twice as many as there may be, of
    requests that use so many in all and go elsewhere a few times each."""
    return 1 << (2 * min(ranks * blocks, 4 * uses)).bit_length()
