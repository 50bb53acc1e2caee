"""What is read of a request: no more than its method has use for, whatever is sent.

A push of 32 MB may stand for 16 million objects: 1.7 GB, and three seconds in which nobody else is
answered. So bytes are looked at before objects are made of them.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from placer.errors import PlacerError
from placer.files.plans import LIMIT
from placer.v1 import profile_pb2

SMALL = 2**18  # bytes of a request; a registration with the largest shape has 70 KB
SIZES = {"/placer.v1.PlacementService/Propose": LIMIT + SMALL}  # a plan file
REGISTER = "/placer.v1.FleetService/Register"  # whose texts are cut, not refused: wire.py
PUSH = "/placer.v1.ProfileService/Push"  # read by ``read_push``
TEXTS = {"policy": 2**16}  # characters of what may be longer than
TEXT = 1000  # characters of a reason, a key, an id, a name
FIELDS = 32  # of a push, and of each part of it: an agent's has up to 9
SEQUENCES = 2**22  # bytes of a trace's seq_lens, and of its prompt_lens
LIGHT = 2**20  # bytes of a push that is read between two others; larger ones are read beside them

Pairs = dict[str, bytes | memoryview]  # of counts: transitions and co-activations, as on the wire

# Parts of a push that may hold many objects. Of the others, its id and steps, a field that comes
# twice counts once.
_PARTS = {
    profile_pb2.PushRequest.DESCRIPTOR.fields_by_name[name].number: name
    for name in ("counts", "trace")
}
_PAIRS = {
    profile_pb2.Counts.DESCRIPTOR.fields_by_name[name].number: name
    for name in ("transitions", "coactivation")
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types


class RequestError(PlacerError):
    """A request that is larger than its method's can be, or none at all. size: its bytes"""

    size = 0

    def sized(self, data: bytes) -> "RequestError":
        self.size = len(data)
        return self


class Intake(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Reads requests. Methods get one that cannot be read as the RequestError that says
    why: of what is raised while reading gRPC would say UNKNOWN. Pushes come as they are."""

    async def intercept_service(
        self, continuation: Callable[..., Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        handler, method = await continuation(details), details.method
        if handler is None or handler.request_deserializer is None:
            return handler
        if method == PUSH:
            return handler._replace(request_deserializer=None)

        def read(data: bytes) -> Any:
            try:
                return _read(handler.request_deserializer, data, method)
            except RequestError as error:
                return error.sized(data)

        return handler._replace(request_deserializer=read)


def read_push(data: bytes) -> tuple[Any, list[Pairs]]:
    """A PushRequest, and of each of its counts the pairs. A large one lacks them: they are tens of
    MB, and nobody else is answered while they are copied. Raises RequestError for one of more parts
    than a push has."""
    try:
        if len(data) > LIGHT:
            push, found = _read_large(memoryview(data))
        else:
            for _ in _fields(memoryview(data), "a push"):
                pass  # whoever sends more parts than a push has is refused
            push = profile_pb2.PushRequest.FromString(data)
            found = [{name: getattr(one, name) for name in _PAIRS.values()} for one in push.counts]
        _check_texts(push.id)
    except (DecodeError, IndexError) as error:
        raise _unreadable(PUSH).sized(data) from error
    except RequestError as error:
        raise error.sized(data) from None
    return push, found


def _read(parse: Callable[[bytes], Any], data: bytes, method: str) -> Any:
    most = SIZES.get(method, SMALL)
    if len(data) > most:
        raise RequestError(f"{method} with {len(data):,} bytes: it takes {most:,} at most")
    try:
        request = parse(data)
    except DecodeError as error:
        raise _unreadable(method) from error
    if method != REGISTER:
        _check_texts(request)
    return request


def _check_texts(message: Message) -> None:
    for field, value in message.ListFields():
        most = TEXTS.get(field.name, TEXT)
        if field.type == field.TYPE_STRING and len(value) > most:
            raise RequestError(f"{field.name} has {len(value):,} characters: give {most:,} at most")


def _read_large(data: memoryview) -> tuple[Any, list[Pairs]]:
    rest, counts = _parts(data)
    push = profile_pb2.PushRequest.FromString(b"".join(rest))
    for one, _ in counts:
        push.counts.add().MergeFromString(b"".join(one))
    return push, [pairs for _, pairs in counts]


def _parts(push: memoryview) -> tuple[list[memoryview], list[tuple[list[memoryview], Pairs]]]:
    """The fields of a push without its counts, and of these, each without its pairs.

    Raises RequestError for more fields than anybody means; IndexError if it is cut short.
    """
    rest, counts = [], []
    for whole, part, number in _fields(push, "a push"):
        name, kept = _PARTS.get(number, ""), []
        pairs: Pairs = {}
        for field, inner, of in _fields(part, name) if name else ():
            if name == "trace" and of in (3, 6, 7, 8) and len(inner) > SEQUENCES:
                raise RequestError(f"a trace of {len(inner):,} bytes of lengths: send fewer")
            if name == "counts" and of in _PAIRS:
                pairs[_PAIRS[of]] = inner
            else:
                kept.append(field)
        if name == "counts":
            counts.append((kept, pairs))
        else:
            rest.append(whole)
    return rest, counts


def _fields(message: memoryview, name: str) -> Iterator[tuple[memoryview, memoryview, int]]:
    """Each field of a message as it is on the wire, what stands in it, and its number."""
    at = count = 0
    end = len(message)
    while at < end:
        start, count = at, count + 1
        if count > FIELDS:
            raise RequestError(f"{name} with more than {FIELDS} fields: it has 2 phases at most")
        tag, at = _varint(message, at)
        kind, begin = tag & 7, at
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            size, begin = _varint(message, at)
            at = begin + size
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:  # groups, which nobody writes
            raise RequestError(f"{name} with fields of wire type {kind}: is it of these protos?")
        if at > end:
            raise IndexError("a field of more bytes than there are")
        yield message[start:at], message[begin:at], tag >> 3


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number at ``at``, and what comes after it."""
    value = message[at]
    if value < 0x80:  # nearly always
        return value, at + 1
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError("a number of more than ten bytes")


def _unreadable(method: str) -> RequestError:
    return RequestError(f"{method} with bytes that are no request: is it of this version's protos?")
