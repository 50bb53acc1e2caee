"""Processes that are compared: this front, and vLLM's router; and what they cost."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from socket import create_server

WANTED = "vllm-router==0.1.17"
STARTS_S = 60.0


class AbsentError(Exception):
    """It cannot be had here."""


def a_port() -> int:
    with create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def process(command: Sequence[str], port: int) -> Iterator[int]:
    """Its id, from when it is healthy."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + STARTS_S
        while not healthy(port):
            if child.poll() is not None or time.monotonic() > end:
                raise AbsentError(f"{command[0]} does not start")
            time.sleep(0.05)
        yield child.pid
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def healthy(port: int) -> bool:
    return answer(port, "GET", "/health") == 200


def answer(port: int, method: str, path: str, body: str = "") -> int:
    """The status; 0: nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body or None, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        return reply.status
    except OSError:
        return 0
    finally:
        connection.close()


def upstream(port: int) -> list[str]:
    return [sys.executable, "-m", "bench.front.upstream", str(port)]


def ours(port: int, engines: Sequence[int]) -> list[str]:
    named = [word for one in engines for word in ("--engine", f"http://127.0.0.1:{one}")]
    listen = f"127.0.0.1:{port}"
    return [sys.executable, "-m", "placer.cli.main", "front", "--listen", listen, *named]


def theirs(folder: Path, port: int, engines: Sequence[int]) -> list[str]:
    """Installed into ``folder`` first. Raises AbsentError."""
    program = folder / "bin" / "vllm-router"
    if not program.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
            install = [str(folder / "bin" / "pip"), "install", "--quiet", WANTED]
            subprocess.run(install, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or "").strip().splitlines()
            raise AbsentError(f"{WANTED}: {said[-1] if said else 'pip failed'}") from error
    return [
        str(program), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
        "--log-level", "error", "--prometheus-port", str(a_port()), "--worker-urls",
        *(f"http://127.0.0.1:{one}" for one in engines),
    ]  # fmt: skip


def cpu_s(pid: int) -> float:
    """User and system seconds of a process and those that it started, up to now."""
    ticks = 0
    for one in [pid, *_children(pid)]:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in re.findall(r"\d+", (task / "children").read_text()):
            found += [int(child), *_children(int(child))]
    return found
