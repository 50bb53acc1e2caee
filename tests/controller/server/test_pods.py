"""In which pods an engine's ranks run, and what each of them says of a plan."""

from pathlib import Path
from typing import Any

from placer.v1 import fleet_pb2, placement_pb2
from tests.controller.server.tiny_server import Setting, World, a_world
from tests.controller.tiny_pool import asynchronous


async def join(world: World, rank: int, engine: str = "engine-1", **more: Any) -> None:
    changes = {"ep_rank": rank, "ep_size": 2}
    pod = {"pod_name": f"{engine}-{rank}", "pod_uid": f"uid-{engine}-{rank}", "node": "gpu-7"}
    await world.register(worker=f"worker-{rank}", engine=engine, changes=changes, **{**pod, **more})


async def rank_pods(world: World) -> list[tuple[Any, ...]]:
    pool = (await world.fleet.Status(fleet_pb2.StatusRequest(pool="tiny"))).pools[0]
    return [
        (engine.name, pod.rank, pod.worker, pod.pod_name, pod.pod_uid, pod.node)
        for engine in pool.engines
        for pod in engine.rank_pods
    ]


@asynchronous
async def test_an_engine_tells_the_pods_that_its_ranks_run_in(tmp_path: Path) -> None:
    setting = Setting(ledger=tmp_path / "ledger.db")
    expected = [
        ("engine-1", rank, f"worker-{rank}", f"engine-1-{rank}", f"uid-engine-1-{rank}", "gpu-7")
        for rank in (0, 1)
    ]
    async with a_world(setting) as world:
        await join(world, 1)
        await join(world, 0)
        await world.register(engine="engine-2")  # an agent of before, or not in a pod
        assert await rank_pods(world) == expected
        await world.loop.tick()
    async with a_world(setting) as world:
        assert await rank_pods(world) == expected


@asynchronous
async def test_a_plan_tells_what_each_rank_serves_and_who_refused() -> None:
    async with a_world() as world:
        await world.traffic()
        plan = await world.proposed()
        await join(world, 0, epoch=7, digest=plan.digest)
        await join(world, 1, epoch=5, digest="sha256:5", refused_epoch=7, refused="no room")
        await join(world, 0, engine="engine-2", epoch=8, digest="sha256:8", refused_epoch=7)
        found = (await world.placement.Get(placement_pb2.GetRequest(plan_id=plan.id))).plan
        told = {
            (one.engine, one.rank): (one.worker, one.pod, one.epoch, one.digest, one.refused)
            for one in found.acknowledgements
            if one.pod
        }
        assert told == {
            ("engine-1", 0): ("worker-0", "uid-engine-1-0", 7, plan.digest, ""),
            ("engine-1", 1): ("worker-1", "uid-engine-1-1", 5, "sha256:5", "no room"),
            ("engine-2", 0): ("worker-0", "uid-engine-2-0", 8, "sha256:8", ""),
        }
