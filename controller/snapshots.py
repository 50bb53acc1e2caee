"""What a controller that was killed would like to know at once: who is there, up to which push, and
the traffic that was counted. Written at every look; what came since is lost, and nothing twice."""

from dataclasses import asdict
from io import BytesIO
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from controller.fleet import Fleet, Member, Pool, Registration
from controller.journal import Journal
from controller.store import Record
from controller.windows import Delta, Window
from placer.pace import Pace, of_meta

_REGISTRATION = TypeAdapter(Registration)


def take(journal: Journal, pool: Pool) -> None:
    """One record a pool, of which the ledger keeps the newest."""
    parts = [
        (phase, *part)
        for phase, window in pool.windows.items()
        for part in window.parts(phase, pool.model.top_k)
    ]
    body = {
        "members": [
            {
                "said": asdict(member.said), "heard_s": member.heard_s,
                "sequence": member.sequence, "lost": member.lost,
            }
            for member in pool.members.values()
        ],
        "windows": [
            {
                "phase": phase, "begun_s": begun_s,
                "tokens": delta.tokens, "sequences": delta.sequences,
                "pace": None if pace is None else asdict(pace),
            }
            for phase, begun_s, delta, pace in parts
        ],
    }  # fmt: skip
    file = BytesIO()
    np.savez(file, *(delta.load for _, _, delta, _ in parts))
    blob, reason = file.getvalue(), f"{len(pool.members)} workers"
    last = journal.ledger.get("snapshot", pool.name)
    if last is None:
        journal.write("snapshot", pool.name, reason, body, pool=pool.name, blob=blob)
    else:
        journal.follow(last, reason, body=body, blob=blob)


def recall(journal: Journal, fleet: Fleet, window_s: Any) -> None:
    """Fill a new fleet with what the last controller knew. window_s: by pool, as the fleet's"""
    for record in journal.ledger.newest("snapshot"):
        _recall(record, journal.ledger.blob("snapshot", record.id) or b"", fleet, window_s)


def _recall(record: Record, blob: bytes, fleet: Fleet, window_s: Any) -> None:
    for kept in record.body["members"]:
        said = _REGISTRATION.validate_python(kept["said"])
        fleet.register(said, kept["heard_s"])
        pool = fleet.pools[record.id]
        pool.members[said.id.engine, said.id.worker] = Member(
            said, kept["heard_s"], kept["sequence"], kept["lost"]
        )
    if record.id not in fleet.pools:
        return
    pool = fleet.pools[record.id]
    parts: dict[str, list[tuple[float, Delta, Pace | None]]] = {}
    with np.load(BytesIO(blob), allow_pickle=False) as arrays:
        for at, kept in enumerate(record.body["windows"]):
            load = arrays[f"arr_{at}"]
            counted = (pool.model.top_k, kept["tokens"], kept["sequences"], load)
            delta = Delta(kept["phase"], *counted)
            part = kept["begun_s"], delta, of_meta(kept)
            parts.setdefault(kept["phase"], []).append(part)
    for phase, halves in parts.items():
        pool.windows[phase] = Window(window_s(record.id), halves[0][0])
        pool.windows[phase].put_back(halves)
