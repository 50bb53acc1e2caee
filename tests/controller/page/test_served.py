"""The page's port: who gets what over HTTP, on a real server on this host."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from controller.page.live import Live
from controller.page.served import serving
from controller.server.security import Listening, SecurityError
from tests.controller.server.tiny_service import AGENT, OPERATOR, WRONG, Authority, write
from tests.controller.tiny_pool import POOL, SKEWED, World, in_virtual_time

FRONT = "a-fronts-token-of-24-chars"
READER = "a-readers-token-of-24-chars"
TOKENS = f"""
agent: [{AGENT}]
operator: [{OPERATOR}]
front: [{FRONT}]
trace_reader: [{{token: {READER}, name: alice}}]
"""


@asynccontextmanager
async def a_page(**listening: Any) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """Of a pool with a plan that waits."""
    world = World(confirmations=1)
    world.count(SKEWED)
    await world.tick()
    told = Listening("127.0.0.1:0", **listening)
    scheme = "https" if told.certificate else "http"
    async with serving(world.loop, Live(world.loop, ""), told) as port:
        with world.clock.busy():
            async with aiohttp.ClientSession() as session:
                yield session, f"{scheme}://127.0.0.1:{port}"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens.yaml", TOKENS)


@pytest.mark.parametrize(
    ("token", "status"),
    [("", 401), (WRONG, 401), (AGENT, 403), (READER, 403), (FRONT, 200), (OPERATOR, 200)],
)
def test_only_who_may_see_the_fleet_gets_data(tokens: Path, token: str, status: int) -> None:
    @in_virtual_time
    async def ask() -> None:
        async with a_page(tokens=tokens) as (session, address):
            headers = bearer(token) if token else {}
            async with session.get(f"{address}/page.json", headers=headers) as answer:
                assert answer.status == status
                text = await answer.text()
        assert ("plan-1" in text) == (status == 200)
        assert (POOL in text) == (status == 200)

    ask()


def test_a_token_in_the_address_opens_nothing(tokens: Path) -> None:
    @in_virtual_time
    async def ask() -> None:
        async with a_page(tokens=tokens) as (session, address):
            url = f"{address}/page.json?token={OPERATOR}&access_token={OPERATOR}"
            async with session.get(url) as answer:
                assert answer.status == 401

    ask()


def test_the_page_itself_is_for_all_and_says_nothing_of_the_fleet(tokens: Path) -> None:
    @in_virtual_time
    async def ask() -> None:
        async with (
            a_page(tokens=tokens) as (session, address),
            session.get(f"{address}/") as answer,
        ):
            assert answer.status == 200
            text = await answer.text()
            headers = answer.headers
        assert "A token is needed" in text
        assert '<script type="application/json" id="data">null</script>' in text
        for secret in ("plan-1", f'"{POOL}"', "37.5%"):
            assert secret not in text
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'sha256-" in policy
        assert "unsafe" not in policy.split("script-src")[1].split(";")[0]
        assert "Set-Cookie" not in headers
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"

    ask()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example"])
def test_a_foreign_name_that_leads_here_gets_nothing(host: str) -> None:
    @in_virtual_time
    async def ask() -> None:
        async with a_page() as (session, address):
            for path in ("/", "/page.json"):
                async with session.get(address + path, headers={"Host": host}) as answer:
                    assert answer.status == 403
                    assert POOL not in await answer.text()

    ask()


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:9000"])
def test_this_hosts_names_do_also_through_a_forwarded_port(host: str) -> None:
    @in_virtual_time
    async def ask() -> None:
        async with (
            a_page() as (session, address),
            session.get(f"{address}/page.json", headers={"Host": host}) as answer,
        ):
            assert answer.status == 200

    ask()


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_nothing_but_get_is_answered(tokens: Path, method: str) -> None:
    @in_virtual_time
    async def ask() -> None:
        async with a_page(tokens=tokens) as (session, address):
            for path in ("/", "/page.json"):
                headers = bearer(OPERATOR)
                async with session.request(method, address + path, headers=headers) as answer:
                    assert answer.status == 405
                    assert answer.headers["Allow"] == "GET"
                    assert "Access-Control-Allow-Origin" not in answer.headers

    ask()


def test_other_paths_and_pools_are_not_there(tokens: Path) -> None:
    @in_virtual_time
    async def ask() -> None:
        async with a_page(tokens=tokens) as (session, address):
            for path in ("/../placer.db", "/metrics", "/page.json?pool=none"):
                async with session.get(address + path, headers=bearer(OPERATOR)) as answer:
                    assert answer.status == 404

    ask()


def test_it_speaks_tls_with_the_controllers_certificate(tokens: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ours")
    own = authority.listening()

    @in_virtual_time
    async def ask() -> None:
        more = {"certificate": own.certificate, "key": own.key, "tokens": tokens}
        async with a_page(**more) as (session, address):
            context = ssl.create_default_context(cafile=str(authority.ca))
            context.check_hostname = False
            headers = bearer(OPERATOR)
            url = f"{address}/page.json"
            async with session.get(url, headers=headers, ssl=context) as answer:
                assert answer.status == 200
            plain = url.replace("https", "http")
            with pytest.raises(aiohttp.ClientError):
                await session.get(plain, headers=headers)

    ask()


def test_other_hosts_reach_it_over_tls_and_with_tokens_only() -> None:
    @in_virtual_time
    async def ask() -> None:
        world = World()
        told = Listening("0.0.0.0:0", harm="see the fleet")
        with pytest.raises(SecurityError, match="certificate"):
            async with serving(world.loop, Live(world.loop, ""), told):
                pass

    ask()


def test_many_who_look_at_once_get_one_answer(tokens: Path) -> None:
    asked = []

    class Counted(Live):
        async def page(self, pool: str = "") -> Any:
            asked.append(pool)
            return await super().page(pool)

    @in_virtual_time
    async def ask() -> None:
        world = World()
        told = Listening("127.0.0.1:0", tokens=tokens)
        async with serving(world.loop, Counted(world.loop, ""), told) as port:
            with world.clock.busy():
                async with aiohttp.ClientSession(headers=bearer(OPERATOR)) as session:
                    url = f"http://127.0.0.1:{port}/page.json"
                    answers = await asyncio.gather(*(session.get(url) for _ in range(5)))
                    assert [one.status for one in answers] == [200] * 5
        assert asked == [""]

    ask()
