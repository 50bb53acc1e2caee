"""API keys, TLS, and what of a client's engines get to know."""

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from controller.server.security import Listening, SecurityError
from tests.controller.router.front.tiny_engine import Engine, engines
from tests.controller.router.front.tiny_front import (
    COMPLETIONS,
    Answer,
    ask,
    completion,
    fronted,
    run,
    write,
)
from tests.controller.server.tiny_service import Authority

KEY, OTHER = "clients-secret-0001", "clients-secret-0002"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write(tmp_path / "keys.yaml", f"client: [{KEY}]\noperator: [operators-secret-1]\n")


@pytest.mark.parametrize(
    "headers",
    [{}, bearer(OTHER), bearer("operators-secret-1"), {"Authorization": KEY},
     {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer "}],
)  # fmt: skip
@run
async def test_without_a_client_s_key_there_is_no_answer(
    keys: Path, headers: dict[str, str]
) -> None:
    engine = Engine()
    listening = Listening("127.0.0.1:0", tokens=keys)
    async with engines(engine), fronted(engine, listening=listening) as here:
        answer = await ask(here.port, COMPLETIONS, completion(), headers)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "API key" in answer.error
        assert KEY not in answer.error
        assert not engine.asked
        assert (await ask(here.port, COMPLETIONS, completion(), bearer(KEY))).status == 200


@run
async def test_keys_are_the_front_s_business_and_the_engine_has_its_own(keys: Path) -> None:
    engine = Engine()
    listening = Listening("127.0.0.1:0", tokens=keys)
    async with engines(engine), fronted(engine, listening=listening, key="Bearer engine") as here:
        await ask(here.port, COMPLETIONS, completion(), bearer(KEY))
        assert {one.headers.get("authorization") for one in engine.asked} == {"Bearer engine"}


@run
async def test_keys_come_and_go_without_a_restart(keys: Path) -> None:
    engine = Engine()
    listening = Listening("127.0.0.1:0", tokens=keys)
    async with engines(engine), fronted(engine, listening=listening) as here:
        write(keys, f"client: [{OTHER}]\n")
        assert (await ask(here.port, COMPLETIONS, completion(), bearer(OTHER))).status == 200
        assert (await ask(here.port, COMPLETIONS, completion(), bearer(KEY))).status == 401


@run
async def test_whoever_leaves_while_a_refusal_waits_harms_nobody(keys: Path) -> None:
    engine = Engine()
    listening = Listening("127.0.0.1:0", tokens=keys)
    async with engines(engine), fronted(engine, listening=listening) as here:
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", here.port)
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
            writer.close()
        assert (await ask(here.port, COMPLETIONS, completion(), bearer(KEY))).status == 200


def over_tls(port: int, authority: Authority, **more: Any) -> Answer:
    from http.client import HTTPSConnection

    context = ssl.create_default_context(cafile=str(authority.ca))
    if more:
        context.load_cert_chain(**more)
    connection = HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
    try:
        connection.request("POST", COMPLETIONS, json.dumps(completion(stream=True)))
        reply = connection.getresponse()
        return Answer(reply.status, dict(reply.getheaders()), reply.read())
    finally:
        connection.close()


@run
async def test_a_stream_over_tls_is_a_stream(tmp_path: Path) -> None:
    authority, engine = Authority(tmp_path, "ours"), Engine()
    listening = authority.listening()
    async with engines(engine), fronted(engine, listening=listening) as here:
        answer = await asyncio.to_thread(over_tls, here.port, authority)
        assert answer.events[-1] == "[DONE]"


@run
async def test_plain_http_on_a_port_of_tls_is_no_harm(tmp_path: Path) -> None:
    authority, engine = Authority(tmp_path, "ours"), Engine()
    async with engines(engine), fronted(engine, listening=authority.listening()) as here:
        with pytest.raises(ConnectionError):
            await ask(here.port, "/health")
        assert (await asyncio.to_thread(over_tls, here.port, authority)).status == 200


@pytest.mark.parametrize(
    ("listening", "why"),
    [(Listening("0.0.0.0:0", harm="use the model"), "could be read on the way"),
     (Listening("nonsense"), "host:port")],
)  # fmt: skip
@run
async def test_it_does_not_listen_where_everybody_could_ask(listening: Listening, why: str) -> None:
    with pytest.raises(SecurityError, match=why):
        async with fronted(listening=listening):
            pass
