"""Changes of width against vLLM's own router, middleware and AsyncLLM, over a stand-in core client.

0.32 is the one that is installed. 0.33 is read from its unpacked wheel, which is never installed:
it imports without a GPU. PLACER_VLLM_033 says where it is, docs/elastic.md how to get it.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")

from controller.engines.vllm_api import Phase, Progress, VllmApi, ask
from controller.engines.vllm_change import VllmChange
from controller.migration.commands import Done, Lost, Outcome, Refused
from placer.clock import SystemClock
from tests.controller.engines.fake_vllm import CONTRACT, Row, rows

ROOT = Path(__file__).parents[2]
CLOCK = SystemClock()
PATIENCE_S = 60.0
UNPACKED = os.environ.get("PLACER_VLLM_033", "")
NO_033 = pytest.mark.skipif(
    not UNPACKED, reason="PLACER_VLLM_033 does not say where vLLM 0.33's wheel is unpacked"
)


class Kind(NamedTuple):
    minor: int
    external: bool


class Story(NamedTuple):
    """Outcomes of changes, and what the first rank's server told, by what was going on."""

    kind: Kind
    outcomes: dict[str, Outcome]
    rows: dict[str, Row]
    retired: Progress | None


class Servers:
    """Of a group of two ranks."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._ports = [_free_port() for _ in range(2)]
        ranks = range(2 if kind.external else 1)
        self._processes = [self._start(rank) for rank in ranks]
        self.apis: list[VllmApi] = []

    def listen(self) -> None:
        """Once they are there."""
        ports = [self._port(one) for one in self._processes]
        self.apis = [VllmApi(f"http://127.0.0.1:{port}", CLOCK, ask) for port in ports]

    def _start(self, rank: int, joins: bool = False) -> "subprocess.Popen[str]":
        store, rpc = self._ports
        told: dict[str, Any] = {"ranks": 2}
        if self.kind.external:
            told |= {"rank": rank, "store": store, "rpc": rpc, "joins": joins}
        path = [str(ROOT)] if self.kind.minor == 32 else [*UNPACKED.split(os.pathsep), str(ROOT)]
        return subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "vllm" / "elastic_server.py"), json.dumps(told)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PLACER_AGENT": ""},
        )  # fmt: skip

    def _port(self, process: "subprocess.Popen[str]") -> int:
        assert process.stdout is not None
        while line := process.stdout.readline():
            if line.strip().isdigit():  # vLLM may say something before
                return int(line)
        raise AssertionError("the server did not start")

    def start_new_ranks(self, *ranks: int) -> None:
        if self.kind.external:
            new = [self._start(rank, joins=True) for rank in ranks]
            self._processes += new
            for one in new:
                self._port(one)

    def let(self, line: str) -> None:
        """All engine cores go on, as it says."""
        for one in self._processes[: len(self.apis)]:
            assert one.stdin is not None
            one.stdin.write(f"{line}\n")
            one.stdin.flush()

    def change(self, target: int) -> VllmChange:
        staying = min(len(self.apis), target)
        return VllmChange("e0", self.apis, staying, target, CLOCK)

    def close(self) -> None:
        for one in self._processes:
            one.kill()
            one.communicate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


async def seen(servers: Servers, row: Row) -> Row:
    """What the first rank's server tells: ``row``, soon, if all is well."""
    last = await rows(ask, servers.apis[0].address)
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            while last != row:
                await asyncio.sleep(0.05)
                last = await rows(ask, servers.apis[0].address)
    return last


async def grows(servers: Servers, story: Story) -> None:
    """Not to 9 ranks, then nearly to 3, then to 3."""
    table, outcomes, found = CONTRACT[servers.kind], story.outcomes, story.rows
    found["idle"] = await seen(servers, table["idle"])
    nine = servers.change(9)
    await nine.check()
    nine.begin()
    outcomes["nine"] = await nine.prepared()
    change = servers.change(3)
    await change.check()
    change.begin()
    await seen(servers, table["preparing"])
    servers.let("prepare fail")
    outcomes["not prepared"] = await change.prepared()
    found["not prepared"] = await seen(servers, table["not prepared"])
    change = servers.change(3)
    outcomes["checked"] = await change.check()
    servers.start_new_ranks(2)
    change.begin()
    preparing = asyncio.create_task(change.prepared())
    found["preparing"] = await seen(servers, table["preparing"])
    servers.let("prepare ok")
    outcomes["prepared"] = await preparing
    found["committing"] = await seen(servers, table["committing"])
    completing = asyncio.create_task(change.completed())
    servers.let("commit ok")
    outcomes["completed"] = await completing
    found["completed"] = await seen(servers, table["completed"])
    again = servers.change(3)
    await again.check()
    again.begin()
    outcomes["again"] = await again.prepared()


async def shrinks(servers: Servers, story: Story) -> Story:
    """To 1 rank, and then nearly to 2."""
    outcomes, retired = story.outcomes, None
    change = servers.change(1)
    await change.check()
    change.begin()
    servers.let("prepare ok")
    await change.prepared()
    servers.let("commit ok")
    outcomes["shrunk"] = await change.completed()
    if servers.kind.external:
        assert not await servers.apis[1].serves()
        retired = await servers.apis[1].progress()
        servers.apis.pop()
    assert await servers.apis[0].serves()
    change.end()
    change = servers.change(2)
    await change.check()
    servers.start_new_ranks(1)
    change.begin()
    servers.let("prepare ok")
    await change.prepared()
    servers.let("commit fail")
    outcomes["not committed"] = await change.completed()
    wanted = CONTRACT[servers.kind]["not committed"]
    wanted = wanted._replace(target=min(wanted.target, 2))
    story.rows["not committed"] = await seen(servers, wanted)
    return story._replace(retired=retired)


async def told(kind: Kind) -> Story:
    groups = [Servers(kind), Servers(kind)]  # they start side by side
    try:
        for one in groups:
            await asyncio.to_thread(one.listen)
        story = Story(kind, {}, {}, None)
        async with asyncio.timeout(4 * PATIENCE_S):
            await grows(groups[0], story)
            return await shrinks(groups[1], story)
    finally:
        for one in groups:
            one.close()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Kind(32, False), id="0.32"),
        pytest.param(Kind(33, False), id="0.33", marks=NO_033),
        pytest.param(Kind(33, True), id="0.33, a server each", marks=NO_033),
    ],
)
def story(request: pytest.FixtureRequest) -> Story:
    return asyncio.run(told(request.param))


def test_what_a_server_tells_is_what_the_contract_says(story: Story) -> None:
    table = CONTRACT[story.kind]
    last = table["not committed"]
    table = {**table, "not committed": last._replace(target=min(last.target, 2))}
    assert story.rows == table


def test_it_grows_and_the_same_target_again_is_nothing(story: Story) -> None:
    for name in ("checked", "prepared", "completed", "again"):
        assert isinstance(story.outcomes[name], Done), name


def test_it_shrinks_and_a_retired_ranks_server_says_that_it_is_completed(story: Story) -> None:
    assert isinstance(story.outcomes["shrunk"], Done)
    if story.kind.external:
        assert story.retired is not None
        assert (story.retired.phase, story.retired.target) == (Phase.COMPLETED, 1)


def test_what_fails_before_the_commit_is_refused(story: Story) -> None:
    refused = story.outcomes["not prepared"]
    assert isinstance(refused, Refused)
    assert refused.reason.startswith("e0 stays as it is")


def test_a_commit_that_fails_loses_the_group(story: Story) -> None:
    lost = story.outcomes["not committed"]
    assert isinstance(lost, Lost)
    assert "the group is lost" in lost.reason


def test_more_ranks_than_the_limit_are_refused_in_vllms_words(story: Story) -> None:
    refused = story.outcomes["nine"]
    assert isinstance(refused, Refused)
    assert "Cannot scale to data_parallel_size 9" in refused.reason
