"""A client that costs next to nothing, in a process of its own: as fast as can be, or paced.

`python -m bench.front.load` reads one JSON object of ``Ask``'s fields from stdin, and writes one of
``Told``'s to stdout.
"""

import asyncio
import json
import sys
from collections import deque
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

import uvloop

END = b"0\r\n\r\n"


@dataclass
class Ask:
    """rate: requests a second, 0 for as many as there can be"""

    port: int
    body: str
    seconds: float
    connections: int
    rate: float = 0.0
    path: str = "/v1/completions"


@dataclass
class Told:
    """latency_ms: of each request, from when it should have been sent"""

    answered: int = 0
    failed: int = 0
    seconds: float = 0.0
    latency_ms: list[float] = field(default_factory=list)


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, load: "Load") -> None:
        self.load, self.begun, self.head = load, 0.0, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, begun: float) -> None:
        self.begun, self.head = begun, b""
        self.transport.write(self.load.data)

    def data_received(self, data: bytes) -> None:
        self.head = self.head or data[:12]
        if data.endswith(END):
            self.load.answered(self, self.head == b"HTTP/1.1 200")
        elif self.head != b"HTTP/1.1 200":
            self.load.answered(self, False)


class Load:
    def __init__(self, ask: Ask) -> None:
        self.ask, self.told = ask, Told()
        body = ask.body.encode()
        self.data = (
            f"POST {ask.path} HTTP/1.1\r\nHost: 127.0.0.1:{ask.port}\r\nUser-Agent: bench\r\n"
            f"Accept: */*\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        self.free: deque[Client] = deque()
        self.late: deque[float] = deque()
        self.ends = 0.0

    async def run(self) -> Told:
        loop = asyncio.get_running_loop()
        for _ in range(self.ask.connections):
            _, client = await loop.create_connection(
                lambda: Client(self), "127.0.0.1", self.ask.port
            )
            self.free.append(client)
        begun = perf_counter()
        self.ends = begun + self.ask.seconds
        if self.ask.rate:
            await self.pace(begun)
        else:
            while self.free:
                self.free.pop().send(perf_counter())
            await asyncio.sleep(self.ask.seconds)
        self.told.seconds = perf_counter() - begun
        return self.told

    async def pace(self, begun: float) -> None:
        due, gap = begun, 1 / self.ask.rate
        while (now := perf_counter()) < self.ends:
            while due <= now:
                if self.free:
                    self.free.pop().send(due)
                else:
                    self.late.append(due)
                due += gap
            await asyncio.sleep(0.0005)

    def answered(self, client: Client, is_well: bool) -> None:
        now = perf_counter()
        if now < self.ends:
            self.told.answered += is_well
            self.told.failed += not is_well
            self.told.latency_ms.append((now - client.begun) * 1e3)
            if not self.ask.rate:
                client.send(now)
            elif self.late:
                client.send(self.late.popleft())
            else:
                self.free.append(client)


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(Load(Ask(**json.load(sys.stdin))).run()))))
