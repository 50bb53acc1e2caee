"""Where each engine of an operation stood before it, to go back to. It never changes, so it is the
blob of the version that began the operation, and no step writes it again."""

import json
from collections.abc import Mapping

from pydantic import TypeAdapter

from controller.changes.operations import Operation
from controller.ledger.ledger import Ledger, Record

_TARGETS = TypeAdapter(dict[str, str])


def pack(targets: Mapping[str, str]) -> bytes:
    """The blob. targets: digests by engine, in the order in which these are changed"""
    return json.dumps(dict(targets)).encode()


def targets_of(ledger: Ledger, record: Record[Operation]) -> Mapping[str, str]:
    """As they were packed. Raises Unreadable."""
    operation = record.value
    if operation.rollback_targets:
        return operation.rollback_targets
    try:
        found = _TARGETS.validate_json(ledger.blob("operation", record.id) or b"{}")
        if len(found) != operation.engines or operation.engine not in ("", *found):
            raise ValueError(f"does not tell where its {operation.engines} engines stood before")
    except ValueError as error:
        raise ledger.leave_out(record, error) from error
    return found
