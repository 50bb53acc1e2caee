"""A service with a method of each kind behind the controller's guard, and its certificates."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import trustme

from controller.server.security import Guard, Listening, Role, Tokens
from placer.channel import Settings, open_aio_channel, open_channel
from placer.clock import SystemClock

AGENT, OPERATOR, WRONG = "agents-secret-0001", "operators-secret-1", "nobodys-secret-001"
TOKENS = f"agent: [{AGENT}]\noperator: [{OPERATOR}]\n"
METHODS = ("/t.T/Push", "/t.T/Watch", "/t.T/Send", "/t.T/Talk", "/t.T/Approve")
NEEDED = {**dict.fromkeys(METHODS, Role.AGENT), "/t.T/Approve": Role.OPERATOR}
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
DENIED = grpc.StatusCode.PERMISSION_DENIED


async def one(request: bytes, _: object) -> bytes:
    return request * 2


async def many(request: bytes, _: object) -> AsyncIterator[bytes]:
    yield request
    yield request


async def joined(requests: AsyncIterator[bytes], _: object) -> bytes:
    return b"".join([request async for request in requests])


async def echoed(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    await context.send_initial_metadata((("welcome", "yes"),))
    async for request in requests:
        yield request


SERVICE = grpc.method_handlers_generic_handler(
    "t.T",
    {
        "Push": grpc.unary_unary_rpc_method_handler(one),
        "Approve": grpc.unary_unary_rpc_method_handler(one),
        "Unlisted": grpc.unary_unary_rpc_method_handler(one),
        "Watch": grpc.unary_stream_rpc_method_handler(many),
        "Send": grpc.stream_unary_rpc_method_handler(joined),
        "Talk": grpc.stream_stream_rpc_method_handler(echoed),
    },
)
HEALTH = grpc.method_handlers_generic_handler(
    "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(one)}
)


@asynccontextmanager
async def serving(listening: Listening) -> AsyncIterator[str]:
    """The address."""
    tokens = None if listening.tokens is None else Tokens(listening.tokens)
    server = grpc.aio.server(interceptors=[Guard(NEEDED, tokens, SystemClock())])
    server.add_generic_rpc_handlers((SERVICE, HEALTH))
    port = listening.open_port(server)
    await server.start()
    try:
        yield f"{listening.address.rpartition(':')[0]}:{port}"
    finally:
        await server.stop(grace=None)


async def outcome(call: Awaitable[Any]) -> Any:
    """What was answered, or the code of the refusal."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error.code()


async def calls(address: str, settings: Settings) -> dict[str, Any]:
    """What comes of calling each method, by its name."""

    async def requests() -> AsyncIterator[bytes]:
        yield b"x"
        yield b"x"

    async def talk(stream: Any) -> bytes:
        # grpc.aio says INTERNAL, now and then, to who writes while the refusal is on its way.
        if "welcome" in await stream.initial_metadata():
            for _ in range(2):
                await stream.write(b"x")
            await stream.done_writing()
        return await read(stream)

    async def read(stream: Any) -> bytes:
        return b"".join([part async for part in stream])

    async with open_aio_channel(address, settings) as channel:
        return {
            "Push": await outcome(channel.unary_unary("/t.T/Push")(b"x", timeout=5)),
            "Approve": await outcome(channel.unary_unary("/t.T/Approve")(b"x", timeout=5)),
            "Unlisted": await outcome(channel.unary_unary("/t.T/Unlisted")(b"x", timeout=5)),
            "Watch": await outcome(read(channel.unary_stream("/t.T/Watch")(b"x", timeout=5))),
            "Send": await outcome(channel.stream_unary("/t.T/Send")(requests(), timeout=5)),
            "Talk": await outcome(talk(channel.stream_stream("/t.T/Talk")(timeout=5))),
            "Health": await outcome(
                channel.unary_unary("/grpc.health.v1.Health/Check")(b"x", timeout=5)
            ),
        }


def calls_in_a_thread(address: str, settings: Settings) -> dict[str, Any]:
    """The same through the channel that agents use."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except grpc.RpcError as error:
            return error.code()

    def two() -> Iterator[bytes]:
        return iter([b"x", b"x"])

    with open_channel(address, settings) as channel:
        methods: dict[str, Callable[[], Any]] = {
            "Push": lambda: channel.unary_unary("/t.T/Push")(b"x", timeout=5),
            "Approve": lambda: channel.unary_unary("/t.T/Approve")(b"x", timeout=5),
            "Unlisted": lambda: channel.unary_unary("/t.T/Unlisted")(b"x", timeout=5),
            "Watch": lambda: b"".join(channel.unary_stream("/t.T/Watch")(b"x", timeout=5)),
            "Send": lambda: channel.stream_unary("/t.T/Send")(two(), timeout=5),
            "Talk": lambda: b"".join(channel.stream_stream("/t.T/Talk")(two(), timeout=5)),
            "Health": lambda: channel.unary_unary("/grpc.health.v1.Health/Check")(b"x", timeout=5),
        }
        return {name: outcome(method) for name, method in methods.items()}


ALL = dict.fromkeys(("Push", "Approve", "Unlisted", "Watch", "Send", "Talk", "Health"), b"xx")
WHAT_AGENTS_MAY = {**ALL, "Approve": DENIED, "Unlisted": DENIED}
NONE = dict.fromkeys(ALL, UNAUTHENTICATED)


def write(path: Path, text: str | bytes) -> Path:
    """As a new file in its place, like Kubernetes does."""
    new = path.with_suffix(".new")
    new.write_bytes(text.encode() if isinstance(text, str) else text)
    new.chmod(0o600)
    new.replace(path)
    return path


class Authority:
    """That signs certificates for this host, and its files."""

    def __init__(self, folder: Path, name: str) -> None:
        self._authority = trustme.CA()
        self.ca = folder / f"{name}-ca.pem"
        self.certificate, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        write(self.ca, self._authority.cert_pem.bytes())
        self.sign()

    def sign(self, *hosts: str, **validity: Any) -> None:
        """A new certificate in the old one's place, for this host unless for others."""
        issued = self._authority.issue_cert(*(hosts or ("127.0.0.1", "localhost")), **validity)
        write(self.certificate, b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        write(self.key, issued.private_key_pem.bytes())

    def listening(self, **more: Any) -> Listening:
        return Listening("127.0.0.1:0", self.certificate, self.key, **more)


async def reached(address: str, settings: Settings) -> bool:
    async with open_aio_channel(address, settings) as channel:
        return await outcome(channel.unary_unary("/t.T/Push")(b"x", timeout=5)) == b"xx"
