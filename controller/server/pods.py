"""Where the ranks of engines run, and what each said of plans."""

from collections.abc import Iterable, Iterator
from typing import Any

from controller.fleet.pools import Member, Pool
from controller.fleet.workers import Fleet
from placer.v1 import fleet_pb2, placement_pb2


def seats(members: Iterable[Member]) -> Iterator[Any]:
    """Of those that say it."""
    for one in (member.registration for member in members):
        if one.pod.uid:
            yield fleet_pb2.Seat(
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
