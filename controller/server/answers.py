"""Errors as gRPC knows them, with the message that says what to do."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import grpc

from controller.desk import BusyError
from controller.fleet import FleetError, UnknownError
from controller.ports import EngineLostError
from controller.store import Conflict, LedgerError, LedgerFull
from placer.errors import PlacerError

CODES: list[tuple[type[PlacerError], grpc.StatusCode]] = [
    (UnknownError, grpc.StatusCode.NOT_FOUND),
    (BusyError, grpc.StatusCode.FAILED_PRECONDITION),
    (FleetError, grpc.StatusCode.FAILED_PRECONDITION),
    (Conflict, grpc.StatusCode.ABORTED),
    (LedgerFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (LedgerError, grpc.StatusCode.UNAVAILABLE),
    (EngineLostError, grpc.StatusCode.UNAVAILABLE),
    (PlacerError, grpc.StatusCode.INVALID_ARGUMENT),
]


def code_of(error: PlacerError) -> grpc.StatusCode:
    return next(code for kind, code in CODES if isinstance(error, kind))


def answering(
    method: Callable[[Any, Any], Awaitable[Any]],
) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    """A method that takes a request and returns its response or raises a PlacerError."""

    @wraps(method)
    async def answered(self: Any, request: Any, context: Any) -> Any:
        try:
            return await method(self, request)
        except PlacerError as error:
            await context.abort(code_of(error), str(error))

    return answered
