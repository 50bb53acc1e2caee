"""docs/api.md holds: its calls are made against `placer serve`, by grpcurl if there is one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.controller.server.tiny_service import AGENT, OPERATOR, TOKENS, Authority, write

ROOT = Path(__file__).parents[3]
DOC = (ROOT / "docs/api.md").read_text()
CALLS = [
    call.split("\n$ ")
    for call in re.findall(r"^```console\n\$ (.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
]
# What differs from run to run.
VALUES = "epoch|cursor|ledger_id|gain|whole_gain"
CHANGES = re.compile(rf'_s": |"({VALUES}|version": "0)|^"20\d\d-|\.\.\.|^$')


@contextmanager
def served(folder: Path, *options: str) -> Iterator[str]:
    """The address of `placer serve`."""
    command = [sys.executable, "-m", "placer.cli.main", "serve", "--listen", "127.0.0.1:0"]
    ledger = ["--ledger", str(folder / "ledger.db")]
    with (folder / "errors").open("w") as errors:
        child = subprocess.Popen(
            [*command, *ledger, *options], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert child.stdout is not None
    try:
        first = child.stdout.readline()
        assert "listens on" in first, (folder / "errors").read_text()
        yield first.split()[-1]
    finally:
        child.send_signal(signal.SIGTERM)
        child.communicate(timeout=60)


def make(calls: list[str], address: str, folder: Path) -> None:
    """The calls, whose answers must have the lines that are told."""
    if shutil.which("grpcurl") is None:
        script = Path(__file__).with_name("grpcurl.py")
        shim = folder / "bin" / "grpcurl"
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
        shim.chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    for call in calls:
        command, told = parts(call)
        found = subprocess.run(
            ["bash", "-c", command.replace("127.0.0.1:7077", address)],
            env={**os.environ, "PATH": path},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        ).stdout
        # Python writes whole numbers of type double with a .0, Go without.
        lines = {line.strip().rstrip(",").removesuffix(".0") for line in found.splitlines()}
        for line in told:
            assert line in lines, f"{command}\nsays\n{found}"


def parts(call: str) -> tuple[str, list[str]]:
    """The command, up to where its quotes are closed, and the lines of the answer that stay."""
    lines = call.splitlines()
    length = next(n for n in range(1, len(lines) + 1) if "\n".join(lines[:n]).count("'") % 2 == 0)
    told = [line.strip().rstrip(",") for line in lines[length:]]
    return "\n".join(lines[:length]), [line for line in told if not CHANGES.search(line)]


def test_the_calls_are_found_with_their_answers() -> None:
    assert sum(len(block) for block in CALLS) == DOC.count("\n$ ") >= 20
    command, told = parts(CALLS[0][1])
    assert command == "grpcurl -plaintext 127.0.0.1:7077 grpc.health.v1.Health/Check"
    assert told == ["{", '"status": "SERVING"', "}"]


@pytest.mark.xdist_group("ray")
@pytest.mark.slow
def test_all_that_the_document_says_without_tokens_is_so(tmp_path: Path) -> None:
    (config,) = re.findall(r"^```yaml\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
    hour = (time.gmtime().tm_hour + 12) % 24  # half a day from now: nothing begins by itself
    config = config.replace("22:00-06:00", f"{hour:02}:00-{hour:02}:59")
    (tmp_path / "config.yaml").write_text(config)
    with served(tmp_path, "--config", str(tmp_path / "config.yaml")) as address:
        make([call for block in CALLS[:-1] for call in block], address, tmp_path)


@pytest.mark.xdist_group("ray")
@pytest.mark.slow
def test_all_that_it_says_with_tokens_and_tls_is_so(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "it")
    shutil.copy(authority.ca, tmp_path / "ca.pem")
    write(tmp_path / "operator.token", OPERATOR)
    write(tmp_path / "agent.token", AGENT)
    tokens = write(tmp_path / "tokens.yaml", TOKENS)
    secured = ["--tls-cert", str(authority.certificate), "--tls-key", str(authority.key)]
    with served(tmp_path, "--tokens", str(tokens), *secured) as address:
        make(CALLS[-1], address, tmp_path)
