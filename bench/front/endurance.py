"""10,000 requests through two scalings, 503 for a while, and one engine that is killed."""

import asyncio
import json
import os
import signal
from collections import Counter
from contextlib import ExitStack
from itertools import count
from typing import Any

from bench.front import routers
from bench.timing import console

REQUESTS = int(os.environ.get("REQUESTS", "10000"))
CLIENTS, ENGINES, TOKENS, PROMPT = 32, 3, 64, 16
AWAY_S = 2.0
EXPECTED = "".join(f"{place} " for place in range(PROMPT, PROMPT + TOKENS))


def run() -> None:
    with ExitStack() as stack:
        engines = [routers.a_port() for _ in range(ENGINES)]
        pids = [stack.enter_context(routers.process(routers.upstream(one), one)) for one in engines]
        port = routers.a_port()
        stack.enter_context(routers.process(routers.ours(port, engines), port))
        asyncio.run(_through(port, engines, pids))


async def _through(port: int, engines: list[int], pids: list[int]) -> None:
    outcomes: Counter[str] = Counter()
    numbers = count()

    async def client() -> None:
        while (number := next(numbers)) < REQUESTS:
            try:
                outcomes[await _ask(port, number)] += 1
            except (OSError, EOFError, ValueError) as error:
                outcomes[type(error).__name__] += 1

    async def trouble() -> None:
        """When a quarter, a half and three quarters are begun."""
        for share, scaled in (
            (0.25, engines[:1]),
            (0.5, engines),
        ):  # one; all, so that nobody serves
            while outcomes.total() < REQUESTS * share:
                await asyncio.sleep(0.01)
            for one in scaled:
                await asyncio.to_thread(routers.answer, one, "POST", "/away")
            await asyncio.sleep(AWAY_S)
            for one in scaled:
                await asyncio.to_thread(routers.answer, one, "POST", "/back")
        while outcomes.total() < REQUESTS * 0.75:
            await asyncio.sleep(0.01)
        os.kill(pids[2], signal.SIGKILL)

    await asyncio.gather(trouble(), *(client() for _ in range(CLIENTS)))
    figures = await asyncio.to_thread(_metrics, port)
    console.print(
        f"{REQUESTS:,} requests through two scalings and a killed engine: "
        + ", ".join(f"{number:,} {name}" for name, number in outcomes.most_common())
    )
    for line in figures.splitlines():
        if (
            line.startswith(("vllm_router_retries_total", "placer_front_"))
            and "_created" not in line
        ):
            console.print(f"  {line}")


async def _ask(port: int, number: int) -> str:
    """Two of three are streams; all are greedy."""
    stream = number % 3 > 0
    body: dict[str, Any] = {"model": "bench", "prompt": list(range(PROMPT)), "max_tokens": TOKENS,
                            "temperature": 0, "stream": stream}  # fmt: skip
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    try:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(data), data)
        )
        answer = await reader.read()
    finally:
        writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return f"answered {head[9:12].decode() or 'nothing'}"
    told = [json.loads(line) for line in _lines(rest, stream)]
    text = "".join(choice["text"] for one in told for choice in one.get("choices", ()))
    if any("error" in one for one in told):
        return "cut"
    return "right" if text == EXPECTED else "wrong"


def _lines(rest: bytes, stream: bool) -> list[bytes]:
    if not stream:
        return [rest]
    lines = [line[6:] for line in rest.split(b"\n") if line.startswith(b"data: {")]
    if not rest.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"):
        raise EOFError("a stream without its end")
    return lines


def _metrics(port: int) -> str:
    from urllib.request import urlopen

    with urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        return str(reply.read().decode())
