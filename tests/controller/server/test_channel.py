"""placer/channel.py against the controller's guard."""

from pathlib import Path

import grpc
import grpc.aio
import pytest

from controller.server.security import Listening
from placer.channel import ChannelError, Settings, open_aio_channel
from placer.errors import FileError
from tests.controller.server.tiny_service import (
    AGENT,
    ALL,
    OPERATOR,
    TOKENS,
    Authority,
    calls,
    serving,
    write,
)
from tests.controller.tiny_pool import asynchronous


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write(tmp_path / "tokens.yaml", TOKENS)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


FILE = Path("file")


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "TOKEN_FILE", "TLS_CA", "TLS_CERT", "TLS_KEY", "INSECURE"):
        monkeypatch.delenv(f"PLACER_{name}", raising=False)
    assert Settings.of_environment() == Settings()
    monkeypatch.setenv("PLACER_INSECURE", "0")
    monkeypatch.setenv("PLACER_TOKEN", AGENT)
    assert Settings.of_environment() == Settings(token=AGENT)
    assert AGENT not in repr(Settings.of_environment())
    for name in ("TOKEN_FILE", "TLS_CA", "TLS_CERT", "TLS_KEY"):
        monkeypatch.setenv(f"PLACER_{name}", name)
    monkeypatch.setenv("PLACER_INSECURE", "1")
    token_file, ca, certificate, key = map(Path, ("TOKEN_FILE", "TLS_CA", "TLS_CERT", "TLS_KEY"))
    assert Settings.of_environment() == Settings(AGENT, token_file, ca, certificate, key, True)


@pytest.mark.parametrize("text", ["", "two words\n", "two\nlines\n", "ümlaut-and-secret"])
def test_a_token_file_without_a_token_is_told(tmp_path: Path, text: str) -> None:
    settings = Settings(token_file=write(tmp_path / "mine", text))
    with pytest.raises(ChannelError, match="mine holds no token: it must be one line") as told:
        settings.authorization()
    assert "secret" not in str(told.value)


@asynchronous
async def test_a_token_file_that_is_gone_fails_the_call_and_says_so(
    authority: Authority, tokens: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"

    async with (
        serving(Listening("127.0.0.1:0", tokens=tokens)) as address,
        open_aio_channel(address, Settings(token_file=missing)) as channel,
    ):
        with pytest.raises(FileError, match=r"cannot read .*missing"):
            await channel.unary_unary("/t.T/Push")(b"x")

    async with serving(authority.listening(tokens=tokens)) as address:
        settings = Settings(token_file=missing, ca=authority.ca)
        async with open_aio_channel(address, settings) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match=r"cannot read .*missing"):
                await channel.unary_unary("/t.T/Push")(b"x", timeout=5)


@asynchronous
async def test_a_proxy_is_not_asked_for_the_way_to_this_host(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")

    async with serving(Listening("127.0.0.1:0", tokens=tokens)) as address:
        assert await calls(address, Settings(token=OPERATOR)) == ALL
