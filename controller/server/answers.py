"""Errors as gRPC knows them, with the message that says what to do."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import wraps
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from controller.changes.arbiter import BusyError
from controller.fleet.workers import FleetError, UnknownError
from controller.ledger.ledger import Conflict, LedgerError, LedgerFull, TooOld, Unreadable
from controller.ports import EngineLostError
from controller.server.callers import ForbiddenError
from controller.server.intake import RequestError
from controller.server.strangers import Spacing, address_of
from placer.errors import PlacerError

CODES: list[tuple[type[PlacerError], grpc.StatusCode]] = [
    (ForbiddenError, grpc.StatusCode.PERMISSION_DENIED),
    (UnknownError, grpc.StatusCode.NOT_FOUND),
    (BusyError, grpc.StatusCode.FAILED_PRECONDITION),
    (FleetError, grpc.StatusCode.FAILED_PRECONDITION),
    (Conflict, grpc.StatusCode.ABORTED),
    (LedgerFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (TooOld, grpc.StatusCode.OUT_OF_RANGE),
    (Unreadable, grpc.StatusCode.DATA_LOSS),
    (LedgerError, grpc.StatusCode.UNAVAILABLE),
    (EngineLostError, grpc.StatusCode.UNAVAILABLE),
    (PlacerError, grpc.StatusCode.INVALID_ARGUMENT),
]

MOST = 2000  # bytes of a message: as a header they may be three times as many, of 8 KB
A_BUG = "a bug in the controller: its log says more"

log = logging.getLogger("placer.controller")


def code_of(error: PlacerError) -> grpc.StatusCode:
    return next(code for kind, code in CODES if isinstance(error, kind))


def answering(
    method: Callable[[Any, Any], Awaitable[Any]],
) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    """A method that takes a request and returns its response or raises a PlacerError. The object's
    ``refusals`` space answers to what cannot be answered."""

    @wraps(method)
    async def answered(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, _readable(request))
        except Exception as error:
            await _abort(context, method.__name__, error, self.refusals, _size(request, error))

    return answered


def streaming(
    method: Callable[[Any, Any], AsyncIterator[Any]],
) -> Callable[[Any, Any, Any], AsyncIterator[Any]]:
    """The same for a method that answers with a stream."""

    @wraps(method)
    async def streamed(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in method(self, _readable(request)):
                yield response
        except Exception as error:
            await _abort(context, method.__name__, error, self.refusals, _size(request, error))

    return streamed


def _readable(request: Any) -> Any:
    """Raises the error that came in its place: intake.py."""
    if isinstance(request, RequestError):
        raise request
    return request


def _size(request: Any, error: Exception) -> int:
    """Bytes of what is refused; of a stream, only where it was too much to read."""
    if isinstance(error, RequestError):
        return error.size
    return request.ByteSize() if isinstance(request, Message) else 0


async def _abort(context: Any, name: str, error: Exception, refusals: Spacing, size: int) -> None:
    if isinstance(error, grpc.aio.BaseError):  # the client is gone
        raise error
    if isinstance(error, PlacerError):
        if (code := code_of(error)) is grpc.StatusCode.INVALID_ARGUMENT:
            await refusals.turn(address_of(context.peer()), size)
        told = " ".join(str(error).split()).encode(errors="replace")[:MOST]
        await context.abort(code, told.decode(errors="ignore"))
    log.error("placer: %s failed", name, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, A_BUG)
