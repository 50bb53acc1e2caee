"""Where the ranks of engines run and what each said of plans; which pods a pool has and needs."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from controller.changes.operations import Operation, Phase, Scale
from controller.fleet.pools import Member, Pool
from controller.fleet.workers import Fleet
from controller.ledger.ledger import Record
from controller.loop import Loop
from controller.server.messages import wire
from placer.v1 import fleet_pb2, placement_pb2


def rank_pods(members: Iterable[Member]) -> Iterator[Any]:
    """Of those that say it."""
    for one in (member.registration for member in members):
        if one.pod.uid:
            yield fleet_pb2.RankPod(
                rank=one.worker.ep_rank, worker=one.id.worker, pod_name=one.pod.name,
                pod_uid=one.pod.uid, node=one.pod.node,
            )  # fmt: skip


def acknowledgements(fleet: Fleet, pool: Pool, width: int) -> Iterator[Any]:
    """Of the workers that are heard, of engines of this width; 0: of any."""
    for engine, members in pool.engines.items():
        for member in members:
            one = member.registration
            if fleet.is_heard(member) and width in (0, one.worker.ep_size):
                yield placement_pb2.RankAcknowledgement(
                    engine=engine, rank=one.worker.ep_rank, worker=one.id.worker, pod=one.pod.uid,
                    epoch=one.epoch, digest=one.digest,
                    refused=one.refused if one.refused_epoch > one.epoch else "",
                )  # fmt: skip


def stock(loop: Loop, pool: str) -> Any:
    return fleet_pb2.Stock(**asdict(loop.reported.stock(pool)))


def releasable(loop: Loop, pool: str) -> list[str]:
    """None while the pool is being changed, or about to be."""
    running = loop.arbiter.running
    if loop.arbiter.queue.of(pool) or (running is not None and running.pool == pool):
        return []
    return loop.reported.releasable(pool)


def operation(loop: Loop, record: Record[Operation]) -> Any:
    """With its place among those that wait, and the pods that nobody needs since."""
    told, scale = wire.operation(record), record.value.scale
    told.queue = loop.arbiter.queue.place(record.id)
    if scale is None:
        return told
    if record.value.phase is Phase.WAITING:
        told.progress = _waits_for(loop, record.pool, scale)
    elif record.value.phase is Phase.SUCCEEDED:
        spare = releasable(loop, record.pool) if scale.ranks < scale.before else []
        last = loop.arbiter.history.last_change(record.pool) if spare else None
        if last is not None and last.id == record.id:
            told.released_pods.extend(spare)
    return told


def _waits_for(loop: Loop, name: str, change: Scale) -> str:
    pool = loop.fleet.pools.get(name)
    group = pool.group(change.before) if pool is not None else None
    gpus = change.ranks * (len(group.engines) if group is not None else 1)
    available = loop.reported.stock(name).available
    if change.ranks > change.before and available < gpus:
        return f"waiting for pods: {gpus} GPUs are asked for, {available} available"
    return "waiting for its turn"
