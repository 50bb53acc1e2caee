"""vLLM's own API server with the example model, as `vllm serve` starts it."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vllm.engines import MODEL, ROOT

START_S = 300


@dataclass(frozen=True)
class ApiServer:
    port: int
    pid: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: Any) -> Any:
        return json.loads(self.read(path, body) or b"null")

    def read(self, path: str, body: Any) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: bytes = answer.read()
        return found


@contextmanager
def an_api_server(
    place: Path, options: list[str], more: Mapping[str, str] | None = None
) -> Iterator[ApiServer]:
    """Once it answers. more: of its environment"""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(MODEL), *options,
        "--dtype", "float32", "--enforce-eager", "--skip-tokenizer-init",
        "--max-model-len", "1024", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONPATH": str(ROOT),
        **(more or {}),
    }
    log = place / f"server-{port}.log"
    with log.open("w") as said:
        process = subprocess.Popen(command, env=env, cwd=place, stdout=said, stderr=said)
    found = ApiServer(port, process.pid)
    try:
        until = time.monotonic() + START_S
        while True:
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, "it did not start"
            try:
                found.ask("/health", None)
                break
            except urllib.error.URLError:
                time.sleep(0.2)
        yield found
    finally:
        process.terminate()
        process.wait(timeout=60)
