"""`placer front` as a user meets it."""

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Placer
from tests.controller.router.front.tiny_engine import Engine, engines, text_of, tokens_after
from tests.controller.router.front.tiny_front import (
    COMPLETIONS,
    PROMPT,
    ask,
    completion,
    run,
    until,
    write,
)


@pytest.mark.parametrize(
    ("args", "why"),
    [((), "give --controller and --pool, or --engine"),
     (("--controller", "a:1"), "give --controller and --pool"),
     (("--controller", "a:1", "--pool", "p", "--engine", "http://a:1"), "or --engine"),
     (("--controller", "nowhere", "--pool", "p"), "'nowhere' is no address"),
     (("--engine", "a:8000"), "'a:8000' is no engine's address: write it as http://host:port"),
     (("--engine", "http://a:1/v1"), "is no engine's address"),
     (("--engine", "http://a:1", "--engine", "http://a:1/"), "is given twice"),
     (("--engine", "http://a:1", "--listen", "0.0.0.0:80"), "could be read on the way"),
     (("--engine", "http://a:1", "--config", "no.yaml"), "no.yaml"),
     (("--engine", "http://a:1", "--tokens", "no.yaml"), "no.yaml"),
     (("--engine", "http://a:1", "--engine-key", "no.key"), "no.key"),
     (("--engine", "http://a:1", "--scheduler", "best"), "best"),
     (("--engine", "http://a:1", "--access-log", "no/a.log"), "choose another file"),
     (("--engine", "http://a:1", "--tls-cert", "c.pem"), "needs its key")],
)  # fmt: skip
def test_what_is_wrong_is_told_on_one_line(placer: Placer, args: tuple[str, ...], why: str) -> None:
    ended = placer("front", *args)
    assert (ended.code, ended.out) == (2, "")
    assert why in ended.err
    assert len(ended.err.splitlines()) == 1


def test_help_names_every_way(placer: Placer) -> None:
    told = placer("front", "--help").out
    assert all(word in told for word in ("--controller", "--pool", "--engine", "docs/front.md"))


def test_everybody_s_address_needs_keys_and_they_are_named(placer: Placer) -> None:
    Path("c.pem").touch()
    ended = placer("front", "--engine", "http://a:1", "--listen", "0.0.0.0:80")
    assert "--insecure" in ended.err


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
@run
async def test_it_serves_until_it_is_told_and_answers_what_is_under_way(
    way: signal.Signals, tmp_path: Path
) -> None:
    engine = Engine()
    config = write(tmp_path / "front.yaml", "first_s: 30\n")
    async with engines(engine):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "placer.cli.main", "front", "--engine", engine.url,
            "--listen", "127.0.0.1:0", "--config", str(config), "--access-log", "-",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        found = re.search(r"the front listens on 127\.0\.0\.1:(\d+)", line)
        assert found, (line, await process.stderr.read() if not found and process.stderr else "")
        port = int(found[1])
        assert (await ask(port, COMPLETIONS, completion())).status == 200
        engine.gate = asyncio.Event()
        asking = asyncio.create_task(ask(port, COMPLETIONS, completion(stream=True)))
        await until(lambda: len(engine.asked) == 2)
        process.send_signal(way)
        await asyncio.sleep(0.2)
        engine.gate.set()
        assert (await asking).text == text_of(tokens_after(PROMPT, 8))
        out, err = await process.communicate()
        assert process.returncode == 0, err
        assert "the front has ended" in err.decode()
        assert out.decode().count(f"POST {COMPLETIONS} 200") == 2


@run
async def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    engine = Engine()
    async with engines(engine):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "placer.cli.main", "front", "--engine", engine.url,
            "--listen", "127.0.0.1:0", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        port = int((await process.stdout.readline()).decode().rpartition(":")[2])
        engine.gate = asyncio.Event()
        asking = asyncio.create_task(ask(port, COMPLETIONS, completion(stream=True)))
        await until(lambda: engine.asked)
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, err = await process.communicate()
        assert process.returncode == 0
        assert "what was under way is cut" in err.decode()
        with pytest.raises((OSError, EOFError)):
            await asking
