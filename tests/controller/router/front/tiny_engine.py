"""An engine of a few lines that answers as vLLM does over HTTP, and may be told to misbehave.

Its next token is the sum of all tokens so far, plus 1, modulo 97: whoever goes on from a prompt and
what was generated comes to the same. A token's text is its number and a blank.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

MODULUS = 97


def tokens_after(prompt: Sequence[int], count: int) -> list[int]:
    so_far = list(prompt)
    for _ in range(count):
        so_far.append((sum(so_far) + 1) % MODULUS)
    return so_far[len(prompt) :]


def text_of(tokens: Sequence[int]) -> str:
    return "".join(f"{token} " for token in tokens)


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def rank(self) -> str | None:
        return self.headers.get("x-data-parallel-rank")


@dataclass
class Engine:
    """ranks: that its metrics tell of; header: what it does with X-data-parallel-rank: "local",
    "global", "ignored", "refused" (with words of its own)

    away:   answers 503 to everything
    gates:  an event that each token waits for
    dies:   tokens after which it hangs up in the middle of a chunk, for so many times
    raw:    written instead of an answer to a completion
    load:   requests that it says to have, by rank
    """

    ranks: Sequence[int] = (0,)
    header: str = "local"
    away: bool = False
    dies_after: int = -1
    dies: int = 0
    raw: bytes | None = None
    error: tuple[int, bytes] | None = None
    load: dict[int, int] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    hung_up: int = 0
    gate: asyncio.Event | None = None
    port: int = 0
    fault_after: int = -1
    longest: int = 1000
    server: Any = None
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def asked(self) -> list[Seen]:
        """Completions of clients, not those by which it is found out what ranks there are."""
        return [
            one for one in self.seen if one.method == "POST" and one.data.get("prompt") != [1]
        ]  # fmt: skip

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As kill -9 would."""
        self.server.close()
        for writer in list(self.open):
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.strip().split("\r\n")
                headers = {}
                for line in lines:
                    name, _, value = line.partition(": ")
                    headers[name.lower()] = value
                if headers.get("transfer-encoding") == "chunked":
                    body = await _chunks(reader)
                else:
                    body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = first.split(" ")
                self.seen.append(Seen(method, path, headers, body))
                await self._answer(self.seen[-1], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up += 1
        finally:
            self.open.discard(writer)
            writer.close()

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if self.away:
            _write(writer, 503, b'{"error": "The model is currently scaling."}')
        elif seen.path == "/v1/models":
            _write(writer, 200, json.dumps(
                {"data": [{"id": "tiny", "max_model_len": self.longest}]}).encode())  # fmt: skip
        elif seen.path == "/metrics":
            lines = [f'vllm:num_requests_running{{engine="{rank}",model_name="tiny"}} '
                     f"{float(self.load.get(rank, 0))}" for rank in self.ranks]  # fmt: skip
            _write(writer, 200, "\n".join(lines).encode(), "text/plain")
        elif seen.path == "/tokenize":
            _write(writer, 200, json.dumps({"tokens": [7, 8, 9]}).encode())
        elif seen.method == "POST":
            await self._complete(seen, writer)
        else:
            _write(writer, 200, b'{"version": "0.33.0"}')
        await writer.drain()

    async def _complete(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if fault := self._wrong_rank(seen.rank):
            _write(writer, 400, fault)
        elif self.raw is not None and seen.data.get("prompt") != [1]:
            writer.write(self.raw)
            await writer.drain()
            writer.close()
        elif self.error is not None and seen.data.get("prompt") != [1]:
            _write(writer, *self.error)
        elif seen.path == "/v1/embeddings":
            _write(writer, 200, b'{"data": [{"embedding": [0.5]}]}')
        else:
            data = seen.data
            is_chat = seen.path.endswith("chat/completions")
            prompt = [3, 4] if is_chat or isinstance(data["prompt"], str) else data["prompt"]
            count = data.get("max_tokens", 16)
            if data.get("stream"):
                await self._stream(seen, writer, prompt, count, is_chat)
            else:
                _write(writer, 200, self._whole(prompt, count, is_chat))

    def _wrong_rank(self, told: str | None) -> bytes:
        if told is None or self.header == "ignored" or not told.lstrip("-").isdigit():
            return b""
        low, high = 0, len(self.ranks)
        if self.header == "global":
            low, high = 0, max(self.ranks) + 1
        if low <= int(told) < high:
            return b""
        words = "no such rank"
        if self.header != "refused":
            words = f"data_parallel_rank {told} is out of range [{low}, {high})."
        return json.dumps({"error": {"message": words, "code": 400}}).encode()

    def _whole(self, prompt: list[int], count: int, is_chat: bool) -> bytes:
        tokens = tokens_after(prompt, count)
        told: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        text = text_of(tokens)
        told |= {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
        used = {"prompt_tokens": len(prompt), "completion_tokens": count}
        return json.dumps({"id": "c-1", "choices": [told], "usage": used}).encode()

    async def _stream(
        self, seen: Seen, writer: asyncio.StreamWriter, prompt: list[int], count: int, chat: bool
    ) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        data = seen.data
        tells = data.get("return_token_ids", False)
        names = {
            "id": f"c-{self.port}", "created": 1, "model": "tiny",
            "object": "chat.completion.chunk" if chat else "text_completion",
        }  # fmt: skip
        dies = self.dies > 0
        self.dies -= dies
        if chat:
            first = {"index": 0, "delta": {"role": "assistant", "content": ""}}
            ids = {"prompt_token_ids": prompt if tells else None}
            _event(writer, {**names, "choices": [first], **ids})
        for index, token in enumerate(tokens_after(prompt, count)):
            if self.gate is not None:
                await self.gate.wait()
            if index == self.fault_after:
                _event(writer, {"error": {"message": "EngineDeadError", "code": 500}})
                writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
                return
            if dies and index == self.dies_after:
                writer.write(b'1f\r\ndata: {"id": "half')
                await writer.drain()
                writer.transport.abort()
                return
            choice: dict[str, Any] = {
                "index": 0, "token_ids": [token] if tells else None,
                "finish_reason": "length" if index == count - 1 else None,
            }  # fmt: skip
            if chat:
                choice["delta"] = {"content": text_of([token])}
            else:
                choice["text"] = text_of([token])
                choice["prompt_token_ids"] = prompt if tells and not index else None
            _event(writer, {**names, "choices": [choice]})
            await writer.drain()
        if (data.get("stream_options") or {}).get("include_usage"):
            used = {"prompt_tokens": len(prompt), "completion_tokens": count,
                    "total_tokens": len(prompt) + count}  # fmt: skip
            _event(writer, {**names, "choices": [], "usage": used})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


def _event(writer: asyncio.StreamWriter, data: dict[str, Any]) -> None:
    line = f"data: {json.dumps(data)}\n\n".encode()
    writer.write(b"%x\r\n%b\r\n" % (len(line), line))


def _write(
    writer: asyncio.StreamWriter, status: int, body: bytes, kind: str = "application/json"
) -> None:
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


@asynccontextmanager
async def engines(*them: Engine) -> AsyncIterator[None]:
    for one in them:
        await one.start()
    try:
        yield
    finally:
        for one in them:
            with suppress(Exception):
                await one.stop()
