"""An expert-parallel group of vLLM's as its API servers show it, in memory.

It is a table of the contract of 0.32's and 0.33's routes, middleware and AsyncLLM, as they are read
in their wheels; tests/vllm/test_elastic.py holds the real ones to the same table.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from controller.engines.vllm_api import Answer, Ask, UnreachableError
from placer.clock import Clock

AWAY = Answer(503, json.dumps({"error": "The model is currently scaling."}))
SPARED = ("/health", "/is_scaling_elastic_ep")  # by 0.33's middleware


class Group:
    """minor: of its version, 32 or 33; external: whether each rank has an API server, ``r0``, ...

    fails: "prepare", "commit" or "never ends"; silent: the next calls that get no answer
    waits_for_all: whether it fails, or commits, once all old ranks were asked
    posted: rank and target of each change asked for; at_end: called when the new ranks serve
    """

    def __init__(self, clock: Clock, ranks: int, minor: int = 33, external: bool = True) -> None:
        self.clock, self.ranks, self.minor, self.external = clock, ranks, minor, external
        self.most, self.prepare_s, self.commit_s = 8, 30.0, 5.0
        self.fails, self.silent, self.waits_for_all = "", 0, True
        self.posted: list[tuple[int, int]] = []
        self.at_end: Callable[[int], None] = lambda ranks: None
        self.epoch, self.target, self.phase, self.error = "", 0, "idle", ""
        self.away = False
        self._epochs = 0
        self._locks: dict[int, asyncio.Lock] = {}
        self._work: asyncio.Task[Answer] | None = None
        self._old: set[int] = set()
        self._came: set[int] = set()

    @property
    def addresses(self) -> list[str]:
        return [f"http://r{rank if self.external else 0}:8000" for rank in range(self.ranks)]

    async def ask(
        self, method: str, url: str, body: Mapping[str, Any], deadline_s: float
    ) -> Answer:
        await self.clock.sleep(0)
        if self.silent:
            self.silent -= 1
            raise UnreachableError(f"{url} does not answer")
        host, _, path = url.removeprefix("http://r").partition("/")
        rank, path = int(host.partition(":")[0]), f"/{path}"
        is_spared = self.minor >= 33 and path in SPARED
        if (self.away or (self.external and rank >= self.ranks)) and not is_spared:
            return AWAY
        if (method, path) == ("POST", "/scale_elastic_ep"):
            return await self._scale(rank, body["new_data_parallel_size"])
        if (method, path) == ("POST", "/is_scaling_elastic_ep"):
            return Answer(200, json.dumps(self._told()))
        return Answer(200, "{}")

    def _told(self) -> dict[str, Any]:
        if self.minor < 33:
            return {"is_scaling_elastic_ep": self.away}
        if not self.external:
            phase = "committing" if self.away else "idle"
            nothing = dict.fromkeys(("epoch", "error", "requested_data_parallel_size"))
            return {"is_scaling_elastic_ep": self.away, "phase": phase, **nothing}
        return {
            "is_scaling_elastic_ep": self.phase in ("preparing", "committing"),
            "phase": self.phase,
            "epoch": self.epoch or None,
            "error": self.error or None,
            "requested_data_parallel_size": self.target or None,
        }

    async def _scale(self, rank: int, target: int) -> Answer:
        self.posted.append((rank, target))
        async with self._locks.setdefault(rank, asyncio.Lock()):
            if target == self.ranks:
                return Answer(200, json.dumps({"message": f"Scaled to {target}"}))
            if target > self.most:
                why = f"Cannot scale to data_parallel_size {target}; --elastic-ep-max-dp-size is 8."
                return Answer(400, json.dumps({"error": {"message": why}}))
            if self._work is None or self._work.done():
                self._old, self._came = set(range(self.ranks if self.external else 1)), set()
                self._work = asyncio.create_task(self._changed(target))
            self._came.add(rank)
            return await asyncio.shield(self._work)

    async def _changed(self, target: int) -> Answer:
        self._epochs += 1
        self.epoch, self.target = f"epoch-{self._epochs}", target
        self.phase, self.error = "preparing", ""
        await self.clock.sleep(self.prepare_s)
        while self.waits_for_all and self._came != self._old:
            await self.clock.sleep(0.1)
        if self.fails == "prepare":
            return self._failed("no new rank came")
        self.phase, self.away = "committing", True
        await self.clock.sleep(1e9 if self.fails == "never ends" else self.commit_s)
        if self.fails == "commit":
            return self._failed("NCCL error")
        self.ranks, self.phase, self.away = target, "completed", False
        self.at_end(target)
        return Answer(200, json.dumps({"message": f"Scaled to {target}"}))

    def _failed(self, why: str) -> Answer:
        self.phase, self.error = "failed", why
        return Answer(500, json.dumps({"error": {"message": "Scale failed"}}))


class Row(NamedTuple):
    """What a server answers: status and phase of /is_scaling_elastic_ep, whether it names an epoch,
    the target, and whether /health and /version are 503."""

    status: int
    phase: str
    has_epoch: bool
    target: int
    is_unhealthy: bool
    is_away: bool


async def rows(ask: Ask, address: str) -> Row:
    """Of one server, now."""
    told = await ask("POST", f"{address}/is_scaling_elastic_ep", {}, 5.0)
    health = await ask("GET", f"{address}/health", {}, 5.0)
    version = await ask("GET", f"{address}/version", {}, 5.0)
    said = json.loads(told.text) if told.status == 200 else {}
    return Row(
        told.status,
        said.get("phase") or "",
        bool(said.get("epoch")),
        said.get("requested_data_parallel_size") or 0,
        health.status == 503,
        version.status == 503,
    )


# From 2 data-parallel ranks to 3, by minor version and whether each rank has a server.
CONTRACT = {
    (32, False): {
        "idle": Row(200, "", False, 0, False, False),
        "preparing": Row(200, "", False, 0, False, False),
        "committing": Row(503, "", False, 0, True, True),
        "completed": Row(200, "", False, 0, False, False),
        "not prepared": Row(200, "", False, 0, False, False),
        "not committed": Row(503, "", False, 0, True, True),
    },
    (33, False): {
        "idle": Row(200, "idle", False, 0, False, False),
        "preparing": Row(200, "idle", False, 0, False, False),
        "committing": Row(200, "committing", False, 0, False, True),
        "completed": Row(200, "idle", False, 0, False, False),
        "not prepared": Row(200, "idle", False, 0, False, False),
        "not committed": Row(200, "committing", False, 0, False, True),
    },
    (33, True): {
        "idle": Row(200, "idle", False, 0, False, False),
        "preparing": Row(200, "preparing", True, 3, False, False),
        "committing": Row(200, "committing", True, 3, False, True),
        "completed": Row(200, "completed", True, 3, False, False),
        "not prepared": Row(200, "failed", True, 3, False, False),
        "not committed": Row(200, "failed", True, 3, False, True),
    },
}
