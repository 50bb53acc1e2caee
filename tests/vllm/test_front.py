"""Two real engines behind a front: it changes nothing of their answers, whatever tables say."""

import asyncio
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")
uvloop = pytest.importorskip("uvloop", reason="a front needs uvloop and httptools")
pytest.importorskip("httptools", reason="a front needs uvloop and httptools")

from controller.router.front.front import Front
from controller.router.pool.endpoints import Listed
from controller.router.pool.table_watch import KnownTables
from controller.router.scheduling.lookup import Lookup
from controller.router.scheduling.scheduler import Scheduler
from controller.router.shared.access_log import AccessLog
from controller.router.shared.request_router import RequestRouter
from controller.router.shared.settings import Limits
from controller.server.security import Listening
from placer.clock import SystemClock
from placer.cost.requests import Costs
from placer.tables import Vocabulary
from tests.vllm.api_server import ApiServer, an_api_server
from tests.vllm.engines import MODEL
from tests.vllm.story import real_prompts

TOKENS, IDS = 24, 256
COSTS = Costs(1e-6, 1e-6, 1e-6)
OWN = re.compile(rb'"(created|id)": ?("[^"]*"|\d+)')  # of an answer, not of what it says


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ApiServer]]:
    with ExitStack() as stack, ThreadPoolExecutor() as threads:
        places = [tmp_path_factory.mktemp("engine") for _ in range(2)]
        yield list(threads.map(lambda place: stack.enter_context(_engine(place)), places))


def _engine(place: Path) -> Any:
    return an_api_server(place, [])


def a_request(prompt: list[int], stream: bool) -> dict[str, Any]:
    return {"model": str(MODEL), "prompt": prompt, "max_tokens": TOKENS, "temperature": 0,
            "ignore_eos": True, "stream": stream}  # fmt: skip


def answers(
    engines: list[ApiServer], requests: list[dict[str, Any]], known: KnownTables | None = None
) -> tuple[list[bytes], int]:
    """What a front before both answers, all asked at once, and to how many engines they went."""

    async def served() -> tuple[list[bytes], int]:
        scheduler = Scheduler([], Costs(0.0, 0.0, 0.0))
        router = RequestRouter(scheduler, Limits(), SystemClock(), AccessLog(""), [], False)
        listed = {one.url: Listed(f"engine-{one.port}") for one in engines}
        front, stop = Front(router, Listening("127.0.0.1:0"), listed), asyncio.Event()
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(front.run(stop, port.set_result))
        here = ApiServer(await port, 0)
        while len(router.endpoints.backends) < len(engines):
            await asyncio.sleep(0.05)
        if known is not None:
            router.know({one.engine: known.plan for one in listed.values()}, known)
        asking = [asyncio.to_thread(here.read, "/v1/completions", one) for one in requests]
        found = await asyncio.gather(*asking)
        used = sum(endpoint.served > 0 for endpoint in router.endpoints.all.values())
        stop.set()
        await running
        return found, used

    found: tuple[list[bytes], int] = uvloop.run(served())
    return found


def plain(answer: bytes) -> bytes:
    return OWN.sub(rb'"\1": ""', answer)


def tokens(answer: bytes) -> list[int]:
    found: list[int] = json.loads(answer)["choices"][0]["token_ids"]
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_byte_for_byte_the_engines_own(engines: list[ApiServer], stream: bool) -> None:
    requests = [a_request(prompt, stream) for prompt in real_prompts()[:6]]
    direct = [plain(engines[0].read("/v1/completions", one)) for one in requests]
    assert direct == [plain(engines[1].read("/v1/completions", one)) for one in requests]
    found, used = answers(engines, requests)
    assert used == 2
    assert [plain(one) for one in found] == direct


def test_a_wrong_table_changes_no_token(engines: list[ApiServer]) -> None:
    asks = {"return_token_ids": True}
    requests = [a_request(prompt, False) | asks for prompt in real_prompts()[:6]]
    direct = [tokens(engines[0].read("/v1/completions", one)) for one in requests]
    assert len({tuple(one) for one in direct}) > 1
    shuffled = np.random.default_rng(0).random((IDS + 1, 1))
    tables = Lookup.of(Vocabulary(np.arange(IDS), np.arange(IDS)), [shuffled])
    found, _ = answers(engines, requests, KnownTables(tables, "sha256:of another", COSTS))
    assert [tokens(one) for one in found] == direct
