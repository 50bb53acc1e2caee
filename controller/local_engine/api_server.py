"""An engine's API server: completions in OpenAI's form, as far as vLLM's clients need them here."""

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from controller.local_engine.local_engine import LocalEngine
from controller.local_engine.ranks.group import EngineError
from controller.local_engine.requests import Request, RequestError
from placer.files.faults import first_fault

RANK, REQUEST_ID = "X-data-parallel-rank", "X-Request-Id"
MODEL = "placer-local"


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Asked(BaseModel):
    """A request to /v1/completions. What else vLLM knows is ignored: this engine is greedy."""

    prompt: list[int] | str = Field(min_length=1)
    max_tokens: int = 16
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    return_token_ids: bool = False

    @property
    def tokens(self) -> Sequence[int]:
        """Text is its bytes, which are the example model's vocabulary."""
        return self.prompt.encode() if isinstance(self.prompt, str) else self.prompt


class ApiServer:
    """Serves an engine on a thread of its own, at a port of this host. url: where"""

    def __init__(self, engine: LocalEngine, host: str = "127.0.0.1", port: int = 0) -> None:
        self._engine, self._numbers = engine, count(1)
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        bound: Future[int] = Future()
        run = self._run(host, port, bound)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(run,))
        self._thread.daemon = True
        self._thread.start()
        self.url = f"http://{host}:{bound.result()}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    async def _run(self, host: str, port: int, bound: "Future[int]") -> None:
        app = web.Application(client_max_size=2**24)
        app.add_routes(self._routes())
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        try:
            await runner.setup()
            site = web.TCPSite(runner, host, port)
            await site.start()
            bound.set_result(runner.addresses[0][1])
        except Exception as error:  # for whoever waits for the port
            bound.set_exception(error)
        else:
            await self._over.wait()
        await runner.cleanup()

    def _routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/completions", self._complete),
            web.get("/v1/models", self._models),
            web.get("/metrics", self._metrics),
            web.get("/version", self._version),
            web.get("/health", self._health),
        ]

    async def _models(self, _: web.Request) -> web.Response:
        told = {"id": MODEL, "object": "model", "max_model_len": self._engine.context}
        return web.json_response({"object": "list", "data": [told]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self._engine.metrics)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "placer"})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self._engine.over else 200, text=self._engine.over)

    async def _complete(self, http: web.Request) -> web.StreamResponse:
        try:
            asked = _Asked.model_validate_json(await http.read())
            rank = self._rank(http.headers.get(RANK, ""))
            name = http.headers.get(REQUEST_ID) or f"cmpl-{next(self._numbers)}"
            request = self._engine.submit(asked.tokens, asked.max_tokens, name, rank)
        except (ValidationError, RequestError) as error:
            why = first_fault(error) if isinstance(error, ValidationError) else str(error)
            return _refusal(400, why)
        except EngineError as error:
            return _refusal(503, str(error))
        news = asyncio.Event()
        request.tell(partial(self._loop.call_soon_threadsafe, news.set))
        try:
            if asked.stream:
                return await self._stream(http, asked, request, news)
            while not request.done:
                await news.wait()
                news.clear()
        finally:
            if not request.done:
                request.fail("the client hung up")
        if request.error:
            return _refusal(500, request.error)
        return web.json_response(
            {
                **_names(request),
                "choices": [_choice(asked, request.generated, is_last=True)],
                "usage": _usage(request),
            }
        )

    async def _stream(
        self, http: web.Request, asked: _Asked, request: Request, news: asyncio.Event
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        at = 0
        while True:
            done, generated = request.done, request.generated
            for token in generated[at:]:
                at += 1
                is_last = at == request.max_tokens
                choices = [_choice(asked, [token], is_last)]
                if at == 1 and asked.return_token_ids:
                    choices[0]["prompt_token_ids"] = request.prompt
                await response.write(_event({**_names(request), "choices": choices}))
            if done:
                break
            await news.wait()
            news.clear()
        if request.error:
            await response.write(_event(_error(500, request.error)))
        elif asked.stream_options.include_usage:
            usage = _usage(request)
            await response.write(_event({**_names(request), "choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response

    def _rank(self, told: str) -> int:
        """As vLLM takes it: what is no integer is ignored. Raises RequestError."""
        try:
            rank = int(told)
        except ValueError:
            return -1
        ranks = len(self._engine.order)
        if not 0 <= rank < ranks:
            raise RequestError(f"data_parallel_rank {rank} is out of range [0, {ranks}).")
        return rank


def _names(request: Request) -> dict[str, Any]:
    return {"id": request.name, "object": "text_completion", "created": 0, "model": MODEL}


def _choice(asked: _Asked, tokens: list[int], is_last: bool) -> dict[str, Any]:
    """Bytes that are no text by themselves are told as Latin-1, one character each."""
    return {
        "index": 0,
        "text": bytes(tokens).decode("latin-1"),
        "token_ids": tokens if asked.return_token_ids else None,
        "finish_reason": "length" if is_last else None,
    }


def _usage(request: Request) -> dict[str, int]:
    before, after = len(request.prompt), len(request.generated)
    return {
        "prompt_tokens": before, "completion_tokens": after, "total_tokens": before + after
    }  # fmt: skip


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": status}}


def _refusal(status: int, message: str) -> web.Response:
    return web.json_response(_error(status, message), status=status)


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()
