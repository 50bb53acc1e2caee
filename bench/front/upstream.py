"""An engine that costs next to nothing: `python -m bench.front.upstream PORT`.

The token at place p of a sequence is p, so that whoever goes on from a prompt and what was
generated comes to the same. POST /away and /back: whether it answers 503.
"""

import asyncio
import json
import re
import sys
from typing import Any

import uvloop
from httptools import HttpRequestParser

TOKENS = 8
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
MODELS = b'{"object": "list", "data": [{"id": "bench", "object": "model", "max_model_len": 4096}]}'
METRICS = b'vllm:num_requests_running{engine="0",model_name="bench"} 0.0\n'
_MOST = re.compile(rb'"max_tokens": ?(\d+)')
_PROMPT = re.compile(rb'"prompt": ?\[([0-9, ]*)\]')
away = False


def event(place: int, is_last: bool, tells: bool) -> bytes:
    choice = {
        "index": 0, "text": f"{place} ", "logprobs": None, "stop_reason": None,
        "finish_reason": "length" if is_last else None, "token_ids": [place] if tells else None,
    }  # fmt: skip
    names = {"id": "cmpl-0", "object": "text_completion", "created": 1, "model": "bench"}
    data = {**names, "choices": [choice]}
    line = f"data: {json.dumps(data)}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(line), line)


EVENTS = {(place, last, tells): event(place, last, tells)
          for place in range(200) for last in (False, True) for tells in (False, True)}  # fmt: skip


class Engine(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.parser = HttpRequestParser(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url, self.body = b"", b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        global away
        if self.url in (b"/away", b"/back"):
            away = self.url == b"/away"
            self.whole(200, b"{}")
        elif away:
            self.whole(503, b'{"error": "scaling"}')
        elif self.parser.get_method() == b"POST":
            self.complete()
        else:
            known = {b"/v1/models": MODELS, b"/metrics": METRICS}
            self.whole(200, known.get(self.url, b"{}"))

    def complete(self) -> None:
        most, prompt = _MOST.search(self.body), _PROMPT.search(self.body)
        count = int(most[1]) if most else TOKENS
        first = prompt[1].count(b",") + 1 if prompt else 0
        if b'"stream": true' not in self.body and b'"stream":true' not in self.body:
            text = "".join(f"{place} " for place in range(first, first + count))
            self.whole(200, json.dumps({"choices": [{"index": 0, "text": text}]}).encode())
            return
        tells = b'"return_token_ids":' in self.body
        self.transport.write(HEAD)
        self.go_on(first, first + count - 1, tells)

    def go_on(self, place: int, last: int, tells: bool) -> None:
        """An event a turn of the loop, as tokens of a batch of many come."""
        self.transport.write(EVENTS[place, place == last, tells])
        if place == last:
            self.transport.write(END)
        elif not self.transport.is_closing():
            asyncio.get_running_loop().call_soon(self.go_on, place + 1, last, tells)

    def whole(self, status: int, body: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
