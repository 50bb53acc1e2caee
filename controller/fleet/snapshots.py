"""What a controller that was killed would like to know at once: who is there, up to which push, and
the traffic that was counted. Written at every look; what came since is lost, and nothing twice.

What is written down are instants; who reads them takes none of them to be in the future, nor longer
ago than matters.
"""

from dataclasses import dataclass, replace
from io import BytesIO
from math import isfinite
from typing import Any

import numpy as np

from controller.fleet.pools import Member, Pool
from controller.fleet.windows import Delta, Window
from controller.fleet.workers import FORGOTTEN_S, Fleet
from controller.ledger.ledger import Record
from controller.ledger.records import Form, form_of
from controller.ledger.watched import WatchedLedger
from placer.clock import age
from placer.pace import Pace


@dataclass(frozen=True, slots=True)
class Half:
    """A part of a window, counted since ``begun_s``; its load is an array of the record's blob,
    in the order of halves. ranks: of the engines that served it, 0 if 0.1.0 wrote it"""

    phase: str
    begun_s: float
    tokens: int
    sequences: int
    pace: Pace | None = None
    ranks: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A pool."""

    members: tuple[Member, ...]
    windows: tuple[Half, ...]


_FORM = form_of(Snapshot)
_FORMERLY = {"said": "registration", "heard_s": "last_seen_s"}  # what 0.1.0 wrote


def _read(row: dict[str, Any]) -> Snapshot:
    members = [
        {_FORMERLY.get(name, name): value for name, value in member.items()}
        for member in row["members"]
    ]
    return _FORM.read({**row, "members": members})


FORM = Form(_read, _FORM.write)


def take(ledger: WatchedLedger, pool: Pool) -> None:
    """One record a pool, of which the ledger keeps the newest."""
    now = ledger.clock.now()
    ahead = now - ledger.clock.monotonic()
    parts = [
        (ranks, *part)
        for ranks, windows in pool.windows.items()
        for phase, window in windows.items()
        for part in window.parts(phase, pool.model.top_k)
    ]
    taken = Snapshot(
        tuple(
            replace(member, last_seen_s=member.last_seen_s + ahead)
            for member in pool.members.values()
        ),
        tuple(
            Half(delta.phase, begun_s + ahead, delta.tokens, delta.sequences, pace, ranks)
            for ranks, begun_s, delta, pace in parts
        ),
    )
    file = BytesIO()
    np.savez(file, *(delta.load for _, _, delta, _ in parts))
    blob, reason = file.getvalue(), f"{len(pool.members)} workers"
    version = ledger.records.version("snapshot", pool.name) + 1  # whatever the last one holds
    told = (now, reason, taken, pool.name)
    ledger.put(Record("snapshot", pool.name, version, *told, blob=blob))


def recall(ledger: WatchedLedger, fleet: Fleet, window_s: Any) -> None:
    """Fill a new fleet with what the last controller knew. A snapshot that cannot be read is left
    out: agents say all but the traffic again. window_s: by pool, as the fleet's"""
    for record in ledger.records.newest("snapshot"):
        try:
            blob = ledger.records.blob("snapshot", record.id) or b""
            _recall(record, blob, fleet, window_s)
        except Exception as error:  # whatever it holds, it must not keep a controller from starting
            fleet.pools.pop(record.id, None)
            ledger.records.leave_out(record, error)


def _recall(record: Record[Snapshot], blob: bytes, fleet: Fleet, window_s: Any) -> None:
    for member in record.value.members:
        if member.registration.id.pool != record.id:
            raise ValueError(f"has a worker of another pool, {member.registration.id.pool!r}")
        fleet.register(member.registration)
        key = member.registration.id.engine, member.registration.id.worker
        last_seen_s = _moment(fleet, member.last_seen_s, FORGOTTEN_S)
        fleet.pools[record.id].members[key] = replace(member, last_seen_s=last_seen_s)
    if record.id not in fleet.pools:
        return
    pool = fleet.pools[record.id]
    ranks = next(iter(pool.slots))
    parts: dict[tuple[int, str], list[tuple[float, Delta, Pace | None]]] = {}
    with np.load(BytesIO(blob), allow_pickle=False) as arrays:
        for at, kept in enumerate(record.value.windows):
            load = arrays[f"arr_{at}"]
            shape = pool.model.layers, pool.model.experts
            if load.shape != shape or load.dtype.kind not in "iu" or load.min() < 0:
                raise ValueError(f"counts {load.dtype}{list(load.shape)} and not {list(shape)}")
            counted = (pool.model.top_k, kept.tokens, kept.sequences, load)
            delta = Delta(kept.phase, *counted)
            begun_s = _moment(fleet, kept.begun_s, window_s(record.id))
            part = begun_s, delta, kept.pace
            parts.setdefault((kept.ranks or ranks, kept.phase), []).append(part)
    for (ranks, phase), halves in parts.items():
        windows = pool.windows.setdefault(ranks, {})
        windows[phase] = Window(window_s(record.id), halves[0][0])
        windows[phase].put_back(halves)
    pool.forget_widths()


def _moment(fleet: Fleet, instant: float, longest_s: float) -> float:
    """By the fleet's monotonic clock."""
    if not isfinite(instant):
        raise ValueError(f"was taken at {instant}")
    return fleet.clock.monotonic() - age(fleet.clock, instant, longest_s)
