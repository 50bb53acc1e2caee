"""What docs/api.md uses of grpcurl, for hosts that have none: reads services by reflection."""

import argparse
import sys
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
)
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

Request = reflection_pb2.ServerReflectionRequest


def main() -> int:
    parser = argparse.ArgumentParser(prog="grpcurl")
    parser.add_argument("-plaintext", action="store_true")
    parser.add_argument("-d", default="{}")
    parser.add_argument("-H", action="append", default=[])
    parser.add_argument("-max-time", type=float, default=30)
    parser.add_argument("-cacert", type=Path)
    parser.add_argument("address")
    parser.add_argument("what")
    parser.add_argument("service", nargs="?")
    args = parser.parse_args()
    metadata = [tuple(header.split(": ", 1)) for header in args.H]
    with _channel(args) as channel:
        try:
            if args.what == "list":
                _list(channel, metadata, args.service)
            else:
                _call(channel, metadata, args)
        except grpc.RpcError as error:
            name = "".join(word.title() for word in error.code().name.split("_"))
            details = error.details()
            if name == "DeadlineExceeded":
                details = "context deadline exceeded"
            print(f"ERROR:\n  Code: {name}\n  Message: {details}", file=sys.stderr)
            return 64 + error.code().value[0]
    return 0


def _channel(args: Any) -> Any:
    if args.plaintext:
        return grpc.insecure_channel(args.address)
    return grpc.secure_channel(args.address, grpc.ssl_channel_credentials(args.cacert.read_bytes()))


def _list(channel: Any, metadata: Any, service: str | None) -> None:
    if service is None:
        answer = _ask(channel, metadata, Request(list_services=""))
        names = [one.name for one in answer.list_services_response.service]
    else:
        found = _pool(channel, metadata, service).FindServiceByName(service)
        names = [f"{service}.{method.name}" for method in found.methods]
    print("\n".join(sorted(names)))


def _call(channel: Any, metadata: Any, args: Any) -> None:
    service, _, name = args.what.partition("/")
    pool = _pool(channel, metadata, service)
    method = pool.FindServiceByName(service).methods_by_name[name]
    request, response = (
        message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type)
    )
    call = channel.stream_stream(f"/{args.what}", request.SerializeToString, response.FromString)
    asked = json_format.Parse(args.d, request())
    for answer in call(iter([asked]), metadata=metadata, timeout=args.max_time):
        text = json_format.MessageToJson(answer, preserving_proto_field_name=True)
        print("{\n  \n}" if text == "{}" else text, flush=True)


def _pool(channel: Any, metadata: Any, service: str) -> Any:
    """With the file of a service and all that it imports."""
    pool, seen, wanted = descriptor_pool.DescriptorPool(), {}, [
        Request(file_containing_symbol=service)
    ]  # fmt: skip
    while wanted:
        answer = _ask(channel, metadata, wanted.pop())
        for text in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(text)
            if file.name not in seen:
                seen[file.name] = file
                wanted += [Request(file_by_filename=name) for name in file.dependency]

    def add(name: str) -> None:
        file = seen.pop(name, None)
        if file is not None:
            for other in file.dependency:
                add(other)
            pool.Add(file)

    for name in list(seen):
        add(name)
    return pool


def _ask(channel: Any, metadata: Any, request: Any) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    return next(stub.ServerReflectionInfo(iter([request]), metadata=metadata, timeout=30))


if __name__ == "__main__":
    sys.exit(main())
