"""The way to a controller, for the verbs that need one."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from placer.channel import Settings, open_channel
from placer.cli.console import note
from placer.client import OPTIONS, Controller, is_address
from placer.errors import PlacerError

PLANNING_S = 60.0

To = Annotated[
    str,
    typer.Option("--to", envvar="PLACER_CONTROLLER", help="The controller's host:port."),
]
Json = Annotated[bool, typer.Option("--json", help="One object on stdout.")]
Reason = Annotated[str, typer.Option(help="Why, for whoever reads the history.")]


@contextmanager
def controller(address: str) -> Iterator[Controller]:
    if not is_address(address):
        raise PlacerError(f"{address!r} is no address: write it as host:port")
    settings = Settings.of_environment()
    channel = open_channel(address, settings, OPTIONS)
    for fault in settings.credentials.faults(time.time()):
        note(fault)
    try:
        yield Controller(address, channel, settings)
    finally:
        channel.close()


def as_dict(message: Any) -> dict[str, Any]:
    """For --json: numbers stay numbers, and a record's body is no text."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.type == field.TYPE_BYTES:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = dict(value)
        elif field.is_repeated:
            is_message = field.message_type is not None
            found[field.name] = [as_dict(one) if is_message else one for one in value]
        elif field.message_type is not None:
            found[field.name] = as_dict(value) if message.HasField(field.name) else None
        elif field.enum_type is not None:
            found[field.name] = words(field.enum_type, value)
        else:
            found[field.name] = value
    if message.DESCRIPTOR.name == "Record":
        found["body"] = json.loads(found["body"])
    return found


def words(kind: Any, value: int) -> str:
    """OPERATION_PHASE_ROLLED_BACK: "rolled back". kind: the enum's descriptor"""
    prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", kind.name).upper()
    name: str = kind.values_by_number[value].name
    return name.removeprefix(f"{prefix}_").replace("_", " ").lower()
