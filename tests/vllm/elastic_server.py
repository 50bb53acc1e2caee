"""An API server of whichever vLLM stands first in PYTHONPATH: its own router, middleware, AsyncLLM
and, if each rank has a server (0.33), its own coordinator over its own stores. Only the engine core
is a stand-in: it prepares and commits when, and as, a line of stdin says, such as ``commit fail``.

Run with a JSON object: ranks, and with a server each: rank, store and rpc, which are free ports,
and for a new rank, which only joins, ``joins``.
"""

import asyncio
import json
import socket
import sys
import threading
from types import SimpleNamespace
from typing import Any

EXPERTS, MOST, HERE = 4, 8, "127.0.0.1"


class Gates:
    """What the engine core waits for, and how it then ends."""

    def __init__(self) -> None:
        self.events = {name: asyncio.Event() for name in ("prepare", "commit")}
        self.fails: set[str] = set()

    async def through(self, name: str) -> None:
        await self.events[name].wait()
        self.events[name].clear()
        if name in self.fails:
            raise RuntimeError(f"{name} fails")

    def told(self, line: str) -> None:
        name, how = line.split()
        (self.fails.add if how == "fail" else self.fails.discard)(name)
        self.events[name].set()

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(self.told, line)


class OneServer:
    """The core client of a group behind one server: what its ranks would do, and vLLM's limits."""

    def __init__(self, gates: Gates) -> None:
        self.gates = gates

    async def prepare_elastic_ep(self, ranks: int) -> None:
        if ranks > MOST:
            raise ValueError(f"Cannot scale to data_parallel_size {ranks}")
        await self.gates.through("prepare")

    async def commit_elastic_ep(self) -> None:
        await self.gates.through("commit")

    async def get_external_elastic_ep_status(self) -> None:
        return None


class OwnServer:
    """The core client of a rank with a server of its own: vLLM's coordinator with a core that says
    what vLLM's cores say."""

    def __init__(self, gates: Gates, config: Any, rank: int, store: int) -> None:
        from vllm.distributed.elastic_ep.external_elastic_ep import (
            ExternalElasticEPScaleCoordinator,
        )
        from vllm.distributed.utils import create_tcp_store

        self.gates, self.vllm_config, self.rank = gates, config, rank
        if rank == 0:
            self._coord_store = create_tcp_store(
                HERE, store, is_master=True, world_size=-1, wait_for_workers=False
            )
        self.coordinator = ExternalElasticEPScaleCoordinator(self)
        self.coordinator_input_address = self.coordinator_output_address = "tcp://none"
        self.input_address = self.output_address = self.stats_update_address = "tcp://none"
        self.scale_send_socket = SimpleNamespace(send=self._nothing)

    async def prepare_elastic_ep(self, ranks: int) -> None:
        now = self.vllm_config.parallel_config.data_parallel_size
        await self.coordinator.prepare(now, ranks)

    async def commit_elastic_ep(self) -> None:
        await self.coordinator.commit()

    async def get_external_elastic_ep_status(self) -> Any:
        return await asyncio.to_thread(self.coordinator.get_status)

    async def call_utility_async(self, method: str, request: Any = None) -> None:
        from vllm.v1.engine import EEPNotificationType, ReconfigureRankType

        retires = ReconfigureRankType.SHUTDOWN_CURRENT_RANK
        ended = EEPNotificationType.RECONFIGURE_FINISHED
        if method == "reinitialize_distributed" and request.new_data_parallel_rank != retires:
            await self.gates.through("prepare")
            self.coordinator._get_reconfig_store().set(f"eep_ready/{self.rank}", b"1")
            return
        if method == "reinitialize_distributed":
            ended = EEPNotificationType.SHUTDOWN_COMPLETE
        await self.gates.through("commit")
        await self.coordinator.process_engine_core_notification((ended.value, self.rank))

    async def _nothing(self, *_: Any, **__: Any) -> None: ...

    pause_scheduler_async = resume_scheduler_async = _nothing

    def _eep_commit_pause_mode(self) -> str:
        return "keep"

    def _ensure_stats_update_task(self) -> None: ...


def config_of(told: dict[str, Any]) -> Any:
    parallel = SimpleNamespace(
        data_parallel_size=told["ranks"], data_parallel_rank=told.get("rank", 0),
        data_parallel_external_lb="rank" in told, enable_elastic_ep=True,
        elastic_ep_max_dp_size=MOST, data_parallel_master_ip=HERE,
        data_parallel_rpc_port=told.get("rpc", 0), _coord_store_port=told.get("store", 0),
        data_parallel_master_port=0, _data_parallel_master_port_list=[],
        eplb_config=SimpleNamespace(num_redundant_experts=EXPERTS),
    )  # fmt: skip
    model = SimpleNamespace(get_num_experts=lambda: EXPERTS)
    return SimpleNamespace(parallel_config=parallel, model_config=model)


def well() -> dict[str, str]:
    return {}


async def serve(told: dict[str, Any]) -> None:
    import uvicorn
    from fastapi import FastAPI
    from vllm.entrypoints.serve.elastic_ep.api_router import attach_router
    from vllm.entrypoints.serve.elastic_ep.middleware import ScalingMiddleware
    from vllm.v1.engine.async_llm import AsyncLLM

    gates, config = Gates(), config_of(told)
    llm: Any = object.__new__(AsyncLLM)
    llm.vllm_config, llm.log_stats, llm._elastic_ep_lock = config, False, asyncio.Lock()
    external = "rank" in told
    llm.engine_core = (
        OwnServer(gates, config, told["rank"], told["store"]) if external else OneServer(gates)
    )
    app = FastAPI()
    app.state.engine_client = llm
    attach_router(app)
    app.add_middleware(ScalingMiddleware)
    for path in ("/health", "/version"):
        app.add_api_route(path, well)
    listening = socket.create_server((HERE, 0))
    loop = asyncio.get_running_loop()
    threading.Thread(target=gates.listen, args=[loop], daemon=True).start()
    print(json.dumps(listening.getsockname()[1]), flush=True)
    await uvicorn.Server(uvicorn.Config(app, log_level="error")).serve([listening])


def join(told: dict[str, Any]) -> None:
    """What a new rank's process says to the first rank's server, until it is listened to."""
    import msgspec
    import zmq
    from vllm.distributed.utils import create_tcp_store

    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.setsockopt(zmq.IDENTITY, told["rank"].to_bytes(2, "little"))
    dealer.connect(f"tcp://{HERE}:{told['rpc']}")
    print("0", flush=True)
    dealer.send(msgspec.msgpack.encode({"status": "HELLO"}))
    metadata = msgspec.msgpack.decode(dealer.recv())["engine_metadata"]["parallel_config"]
    store = create_tcp_store(HERE, metadata["_coord_store_port"], is_master=False)
    store.set(f"eep_ready/{told['rank']}", b"1")
    dealer.send(msgspec.msgpack.encode({"status": "READY"}))
    dealer.close()


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    if asked.get("joins"):
        join(asked)
    else:
        asyncio.run(serve(asked))
