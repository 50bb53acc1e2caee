"""How loaded ranks were, layer by layer, when a plan was proposed: before and after its moves."""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from controller.ledger.ledger import Ledger, Record
from controller.ledger.records import form_of
from controller.ledger.watched import WatchedLedger
from placer.arrays import FloatArray
from placer.cost.balance import rank_load
from placer.placement import Placement

STEPS = 255
KIND = "rank_loads"  # its ids are those of plans
Count = Annotated[int, Field(ge=1, lt=2**20, strict=True)]


@dataclass(frozen=True, slots=True)
class RankLoads:
    """Load over its layer's mean. The record's blob has two tables [layers, ranks] of bytes, before
    and after, in 255ths of ``peak``."""

    layers: Count
    ranks: Count
    peak: float


FORM = form_of(RankLoads)


def keep(
    ledger: WatchedLedger, plan: Record[Any], load: FloatArray, stands: Placement,
    goal: Placement,
) -> None:  # fmt: skip
    """Of a plan that was just written down. load: [layers, experts] tokens that it was made from"""
    tables = np.stack([rank_load(load, one) for one in (stands, goal)])
    relative = tables / np.maximum(tables.mean(axis=2, keepdims=True), 1e-300)
    peak = max(float(relative.max()), 1.0)
    steps = np.rint(STEPS * relative / peak).astype(np.uint8)
    _, layers, ranks = steps.shape
    value = RankLoads(layers, ranks, peak)
    ledger.write(KIND, plan.id, plan.reason, value, pool=plan.pool, blob=steps.tobytes())


def read(ledger: Ledger, plan_id: str) -> tuple[RankLoads, bytes, bytes] | None:
    """With the tables before and after; None if they are not there, or not as they were kept."""
    blob = ledger.blob(KIND, plan_id)
    found = [one for one in ledger.versions(KIND, plan_id) if blob is not None]
    if not found or blob is None:
        return None
    kept: RankLoads = found[-1].value
    size = kept.layers * kept.ranks
    return (kept, blob[:size], blob[size:]) if len(blob) == 2 * size else None
