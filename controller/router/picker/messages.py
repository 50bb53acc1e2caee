"""Envoy's messages (envoy.service.ext_proc.v3): what gateways say of requests, and are answered.

The names are those of the Gateway API Inference Extension's endpoint picker protocol, 1.0.
Answers are bytes, since most are the same for one request after another.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from google.protobuf.struct_pb2 import Value

from controller.router.picker import gateway_pb2 as wire
from controller.router.wire import heads
from controller.router.wire.heads import JSON, RANK, RefusedError

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
DESTINATION = "x-gateway-destination-endpoint"
PICKED, HINTED = "envoy.lb", "envoy.lb.subset_hint"  # namespaces of metadata
SUBSET = "x-gateway-destination-endpoint-subset"
NONE, DUPLEX = wire.NONE, wire.FULL_DUPLEX_STREAMED
BUFFERED = frozenset({wire.BUFFERED, wire.BUFFERED_PARTIAL})

Said = wire.ProcessingRequest


class Modes(NamedTuple):
    """How bodies come: of the request, and of its answer."""

    request: int
    answer: int


def modes(said: Any) -> Modes:
    """Gateways that do not tell send bodies both ways at once, as the protocol wants it."""
    if not said.HasField("protocol_config"):
        return Modes(DUPLEX, DUPLEX)
    told = said.protocol_config
    return Modes(told.request_body_mode, told.response_body_mode)


def headers(told: Any) -> Mapping[str, bytes]:
    """The last of several of a name."""
    return {one.key: one.raw_value or one.value.encode() for one in told.headers.headers}


def subset(said: Any) -> frozenset[str] | None:
    """Endpoints of which one must be chosen; None: of all."""
    if HINTED not in said.metadata_context.filter_metadata:
        return None
    told: Value = said.metadata_context.filter_metadata[HINTED].fields.get(SUBSET)
    if told is None:
        return None
    if told.HasField("list_value"):
        return frozenset(one.string_value.strip() for one in told.list_value.values)
    return frozenset(one.strip() for one in told.string_value.split(",") if one.strip())


@lru_cache(maxsize=64)
def untouched(kind: str) -> bytes:
    """To a message of that kind: go on."""
    answer = wire.ProcessingResponse()
    getattr(answer, kind).SetInParent()
    return answer.SerializeToString()


@lru_cache(maxsize=4096)
def placed(kind: str, destination: str, line: bytes) -> bytes:
    """It goes there; line: of the head, that chooses the rank. Neither is a client's to choose."""
    answer = wire.ProcessingResponse()
    mutation = getattr(answer, kind).response.header_mutation
    _, _, rank = line.strip().partition(b": ")
    if rank:
        _set(mutation, RANK.decode(), rank)
    else:
        mutation.remove_headers.append(RANK.decode())
    if destination:
        _set(mutation, DESTINATION, destination.encode())
        answer.dynamic_metadata.update({PICKED: {DESTINATION: destination}})
    return answer.SerializeToString()


def streamed(kind: str, body: bytes, is_last: bool) -> bytes:
    """A piece of a body goes on as it came."""
    answer = wire.ProcessingResponse()
    piece = getattr(answer, kind).response.body_mutation.streamed_response
    piece.body, piece.end_of_stream = body, is_last
    return answer.SerializeToString()


def refusal(error: RefusedError) -> bytes:
    """In OpenAI's form."""
    answer = wire.ProcessingResponse()
    immediate = answer.immediate_response
    immediate.status.code = error.status
    immediate.body = heads.error(error.status, error.message)
    for name, value in [*JSON, *error.headers]:
        _set(immediate.headers, name.decode(), value)
    return answer.SerializeToString()


def _set(mutation: Any, name: str, value: bytes) -> None:
    """Instead of what was there."""
    one = mutation.set_headers.add()
    one.header.key, one.header.raw_value = name, value
    one.append_action = one.OVERWRITE_IF_EXISTS_OR_ADD
