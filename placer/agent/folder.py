"""The directory that agents and their operator share.

worker-0/status.json               what the worker is and has applied
worker-0/prefill.npz, decode.npz   profiles of all that it counted since it started
worker-0/traces/000001.npz         sampled requests, token by token; the last ones are kept
plans/000001.json                  plans to apply: the number is the epoch, the highest counts
"""

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from placer.errors import FileError
from placer.files.atomic import read_text, write_text
from placer.files.faults import first_fault
from placer.worker import GONE_S, Status

LIMIT = 2**20
_STATUS = TypeAdapter(Status)


def write_status(folder: Path, status: Status) -> None:
    path = folder / status.worker.name / "status.json"
    write_text(path, json.dumps(asdict(status), indent=1) + "\n")


def read_statuses(folder: Path, now: float) -> list[Status]:
    """Of all workers that are there; those that fell silent are left out. now: unix seconds"""
    found = []
    for path in sorted(folder.glob("worker-*/status.json")):
        text = read_text(path, LIMIT)
        if now - path.stat().st_mtime > GONE_S:
            continue
        try:
            found.append(_STATUS.validate_json(text))
        except ValidationError as error:
            raise FileError(f"{path}: {first_fault(error)}: is it an agent's?") from error
    return found


def profiles(folder: Path) -> list[Path]:
    return [
        path
        for name in ("prefill", "decode")
        for path in sorted(folder.glob(f"worker-*/{name}.npz"))
    ]


def traces(folder: Path) -> list[Path]:
    return sorted(folder.glob("worker-*/traces/*.npz"))


def newest_plan(folder: Path) -> tuple[int, Path] | None:
    """The epoch and file of the plan that counts."""
    numbered = [(int(p.stem), p) for p in (folder / "plans").glob("*.json") if p.stem.isdecimal()]
    return max(numbered, default=None)
