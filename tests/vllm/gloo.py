"""Four processes that stand in for vLLM's workers, with real gloo groups and elastic resizing.

Of vLLM they have what the agent meets: all ranks add up their loads, ask the policy for a map, and
must have got the same. After a resize the slots of new ranks hold nobody (-1).
"""

import multiprocessing
import multiprocessing.connection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

GENEROUS_S = 60.0  # what has not come back by then waits for ever
EXPERTS, SLOTS = 4, 2  # of all ranks; of each


@dataclass
class Told:
    """What a rank says after a command."""

    map: list[int]
    voted: bool = False
    condition: str = ""
    epoch: int = 0
    digest: str = ""
    changes: int = 0
    slots: int = 0
    ep_size: int = 0


class HangError(Exception):
    """Ranks that wait for each other for ever."""


class Four:
    """Processes 0 to 3; each command goes to some of them at once."""

    def __init__(self) -> None:
        import torch.distributed

        self.store = torch.distributed.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        self._groups = self._stories = 0

    def begin_anew(self) -> None:
        """As if they had just started, and the store were empty."""
        self._stories += 1
        if not self._processes:
            spawn = multiprocessing.get_context("spawn")
            for _ in range(4):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=_serve, args=(theirs, self.store.port), daemon=True)
                process.start()
                self._pipes.append(ours)
                self._processes.append(process)
        self.do([0, 1, 2, 3], "begin_anew")

    def begin(self, members: list[int], *words: Any) -> None:
        for rank in members:
            self._pipes[rank].send(words)

    def end(self, members: list[int]) -> list[Told]:
        found = []
        for rank in members:
            if not self._pipes[rank].poll(GENEROUS_S):
                self.close()  # they never will, so others are started
                raise HangError(f"rank {rank} does not come back")
            answer = self._pipes[rank].recv()
            if isinstance(answer, Exception):
                raise answer
            found.append(answer)
        return found

    def do(self, members: list[int], *words: Any) -> list[Told]:
        self.begin(members, *words)
        return self.end(members)

    def join(self, members: list[int], keys: str = "") -> None:
        """Make a group of ``members``. keys: the agents' part of its store, of its own if empty"""
        self._groups += 1
        names = f"group-{self._groups}", f"{self._stories}-{keys or self._groups}"
        for rank in members:
            self.begin([rank], "join", members, *names, rank)
        self.end(members)

    def rearrange(self, members: list[int], to: int = 0) -> list[Told]:
        """On all of a group, for ``to`` ranks if it shrinks."""
        told = self.do(members, "rearrange", to)
        assert len({tuple(one.map) for one in told}) == 1, "ranks have different maps"
        assert len({one.voted for one in told if one.changes}) <= 1
        return told

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        self._pipes, self._processes = [], []


class Own:
    """vLLM's policy: a map that any rank finds by itself, and never the one that there is."""

    def rebalance_experts(self, weight: Any, replicas: int, *rest: Any) -> Any:
        import torch

        first = int(rest[-1][0, 0]) + 1
        return ((torch.arange(replicas) + first) % EXPERTS)[None]


class Rank:
    """One process."""

    def __init__(self, port: int) -> None:
        import torch.distributed

        self.base = torch.distributed.TCPStore("127.0.0.1", port, is_master=False)
        self.begin_anew()

    def begin_anew(self) -> None:
        import torch

        self.group: Any = None
        self.ranks: Any = None
        self.map = torch.arange(2 * SLOTS)[None] % EXPERTS
        self.applying: Any = None
        self.voted = False

    def join(self, members: list[int], name: str, keys: str, me: int) -> None:
        import torch
        from torch.distributed import PrefixStore, ProcessGroup, ProcessGroupGloo

        at, size = members.index(me), len(members)
        gloo = PrefixStore(name, self.base)
        group = ProcessGroup(PrefixStore(keys, self.base), at, size)
        group._set_default_backend(ProcessGroup.BackendType.GLOO)
        backend = ProcessGroupGloo(gloo, at, size, timedelta(seconds=4 * GENEROUS_S))
        group._register_backend(torch.device("cpu"), ProcessGroup.BackendType.GLOO, backend)
        self.group = group
        # New slots hold nobody; all learn from the first rank what the others hold.
        wide = torch.full((1, size * SLOTS), -1)
        kept = min(wide.shape[1], self.map.shape[1])
        wide[:, :kept] = self.map[:, :kept]
        self._broadcast(wide)
        self.map = wide

    def _broadcast(self, tensor: Any) -> None:
        self.group.broadcast(tensor, 0).wait()

    def start_agent(self, version: int) -> None:
        from placer.agent.vllm import verdict
        from placer.agent.vllm.applying import Applying, Vote
        from placer.agent.vllm.process_group import GroupRanks
        from placer.clock import SystemClock
        from placer.worker import Worker

        verdict.AGREEMENT = version
        rank = self

        class Ranks(GroupRanks):
            def votes(self, mine: Vote) -> list[Vote]:
                rank.voted = True
                return super().votes(mine)

        def look() -> tuple[Any, Worker]:
            if self.ranks is None or self.ranks.group is not self.group:
                self.ranks = Ranks(self.group)
            at, size = self.ranks.rank, self.ranks.size
            shape = {"slots": self.map.shape[1], "ep_rank": at, "ep_size": size}
            return self.ranks, Worker(
                f"worker-{at}", "tiny", 1, EXPERTS, 1, can_apply=True, records=True, **shape
            )

        self.applying = Applying(look, Own(), SystemClock())

    def stop_agent(self) -> None:
        self.applying = self.ranks = None

    def look(self) -> None:
        self.applying.look()

    def fail_to_sign(self) -> None:
        """Once."""
        store, verdict = self.ranks.store, self.applying._verdict

        class Failing:
            def set(self, key: str, value: str) -> None:
                verdict._store = store
                raise OSError("connection reset")

            def __getattr__(self, name: str) -> Any:
                return getattr(store, name)

        verdict._store = Failing()

    def rearrange(self, to: int) -> None:
        import torch

        self.voted = False
        ranks = to or self.group.size()
        policy = self.applying or Own()

        def run() -> Any:
            load = torch.ones(1, EXPERTS)
            self.group.allreduce([load]).wait()
            return policy.rebalance_experts(load, ranks * SLOTS, 1, 1, ranks, self.map)

        self.map = self.applying.rearranging(run, False) if self.applying else run()
        self.group.barrier().wait()  # weights move
        if self.applying:
            self.applying._verified_s = 0.0
            self.applying.verify(self.map.numpy)

    def offer(self, epoch: int, row: list[int]) -> None:
        import numpy as np

        from placer.placement import Placement
        from placer.plan import Plan

        if self.applying:
            plan = Plan(Placement(np.array([row]), EXPERTS, len(row) // SLOTS))
            self.applying.offer(epoch, plan)

    def tell(self) -> Told:
        told = Told(self.map[0].tolist(), self.voted)
        if (one := self.applying) is not None:
            told.condition, told.epoch, told.digest = one.condition(), one.epoch, one.digest
            told.changes, told.slots, told.ep_size = (
                one.changes, one.worker.slots, one.worker.ep_size
            )  # fmt: skip
        return told


def _serve(pipe: multiprocessing.connection.Connection, port: int) -> None:
    rank = Rank(port)
    while True:
        what, *words = pipe.recv()
        try:
            getattr(rank, what)(*words)
            pipe.send(rank.tell())
        except Exception as error:
            pipe.send(error)
