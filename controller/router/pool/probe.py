"""What serves at an engine's address, found by asking there: its model, and whose ranks answer.

vLLM takes ``X-data-parallel-rank``: under internal load balancing that is a rank of the engine,
under hybrid and external the number among those behind this address; some frontends want the
engine's rank in all cases. One out of range is an error, one that is no integer is ignored without
a word, and so is the whole header by servers that do not know it. Nobody tells which of these it
is, so it is tried.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from controller.router.wire.heads import JSON, RANK, Headers, lines
from controller.router.wire.server import Reply, Server
from controller.router.wire.upstream import LostError
from controller.samples import ranks_of

LOOK_S = 5.0  # for an answer
TRIED_S = 60.0  # for one token of an engine that is busy
TURNED_AWAY = 503
NO_RANK = 10**6  # that no engine has
OUT_OF_RANGE = re.compile(rb"out of range \[(\d+), ?(\d+)\)")


class EndpointInfo(NamedTuple):
    """ranks: of the engine, that answer here; lines: of a request's head that choose each; longest:
    tokens of a prompt and its answer, 0 if nobody tells; fault: why no rank can be chosen"""

    model: str
    longest: int
    ranks: tuple[int, ...]
    lines: tuple[bytes, ...]
    fault: str = ""


async def probe(server: Server, key: Headers, told: Sequence[int] = ()) -> EndpointInfo:
    """key: headers that open it; told: its ranks, as a controller knows them. Raises LostError."""
    models = await _answer(server, "/v1/models", key)
    model, longest = _model(models.body)
    ranks = ranks_of((await server.ask("GET", "/metrics", LOOK_S, key)).body)
    ranks = ranks or tuple(told) or (0,)
    if len(ranks) == 1:  # a rank an address: there is nothing to choose
        return EndpointInfo(model, longest, ranks, (b"",))
    names, fault = await _names(server, key, model, ranks)
    if fault:
        return EndpointInfo(model, longest, ranks[:1], (b"",), f"{server.address.url} {fault}")
    return EndpointInfo(model, longest, ranks, tuple(lines([(RANK, b"%d" % one)]) for one in names))


async def _names(
    server: Server, key: Headers, model: str, ranks: tuple[int, ...]
) -> tuple[tuple[int, ...], str]:
    """What each of the ranks is called there; or why that cannot be told."""
    here = tuple(range(len(ranks)))
    refusal = await _tried(server, key, model, NO_RANK)
    if refusal.status < 400:
        return here, "ignores X-data-parallel-rank: it chooses among its ranks itself"
    if found := OUT_OF_RANGE.search(refusal.body):
        low, high = int(found[1]), int(found[2])
        if (low, high) == (0, len(ranks)):
            return here, ""
        if low <= ranks[0] and ranks[-1] < high:
            return ranks, ""
        return here, f"takes ranks {low} to {high - 1} and serves {ranks[0]} to {ranks[-1]}"
    for names in dict.fromkeys((ranks, here)):
        if (await _tried(server, key, model, names[-1])).status < 400:
            return names, ""
    return here, f"takes no X-data-parallel-rank (it answers {refusal.status})"


async def _tried(server: Server, key: Headers, model: str, rank: int) -> Reply:
    """One token of that rank."""
    body = json.dumps({"model": model, "prompt": [1], "max_tokens": 1}).encode()
    headers = [*JSON, *key, (RANK, b"%d" % rank)]
    reply = await server.ask("POST", "/v1/completions", TRIED_S, headers, body)
    return _let_in(server, reply)


async def _answer(server: Server, path: str, key: Headers) -> Reply:
    return _let_in(server, await server.ask("GET", path, LOOK_S, key))


def _let_in(server: Server, reply: Reply) -> Reply:
    if reply.status == TURNED_AWAY:
        raise LostError(f"{server.address.url} answers 503")
    return reply


def _model(body: bytes) -> tuple[str, int]:
    """The first one's name and length."""
    with suppress(ValueError, LookupError, TypeError):
        first = json.loads(body)["data"][0]
        longest = first.get("max_model_len")
        return str(first["id"]), longest if isinstance(longest, int) else 0
    return "", 0
