"""A real Chromium without a window, through its DevTools protocol."""

import asyncio
import base64
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (1280, 390)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium")
_LISTENS = re.compile(rb"DevTools listening on (ws://\S+)")


def _is_bad(call: Any) -> bool:
    return call["type"] in ("error", "assert", "warning")


@dataclass(eq=False)
class Tab:
    """errors: of the console, exceptions included; asked: addresses of all requests"""

    socket: Any
    session: str = ""
    errors: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    async def listen(self) -> None:
        async for message in self.socket:
            told = json.loads(message.data)
            if (waiting := self._answers.pop(told.get("id", -1), None)) is not None:
                waiting.set_result(told)
            elif told.get("method") == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            elif told.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(told["params"]["exceptionDetails"])[:500])
            elif told.get("method") == "Log.entryAdded":
                entry = told["params"]["entry"]
                if entry["level"] == "error":
                    self.errors.append(f"{entry['text']} {entry.get('url', '')}")
            elif told.get("method") == "Runtime.consoleAPICalled" and _is_bad(told["params"]):
                self.errors.append(json.dumps(told["params"]["args"])[:500])

    async def do(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        told: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self.session:
            told["sessionId"] = self.session
        answer = self._answers[number]
        await self.socket.send_json(told)
        async with asyncio.timeout(30):
            found = await answer
        if "error" in found:
            raise RuntimeError(f"{method}: {found['error']}")
        return found["result"]

    async def open(self, address: str, width: int = 1280, dark: bool = False) -> None:
        """And wait until it has loaded."""
        shape = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.do("Emulation.setDeviceMetricsOverride", **shape)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.do("Emulation.setEmulatedMedia", features=[scheme])
        await self.do("Page.navigate", url=address)
        await self.until("document.readyState === 'complete'")

    async def see(self, script: str) -> Any:
        """The value of an expression."""
        found = await self.do("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, script: str) -> None:
        """That this is so."""
        async with asyncio.timeout(30):
            while not await self.see(script):
                await asyncio.sleep(0.05)

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            more = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            code = {"Tab": 9, "Enter": 13}[key]
            await self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                          windowsVirtualKeyCode=code, **more)  # fmt: skip

    async def photograph(self, path: Path) -> None:
        """All of it, from top to bottom."""
        found = await self.do("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@asynccontextmanager
async def a_tab() -> AsyncIterator[Tab]:
    """Of a browser of its own, whose profile is new."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        try:
            async with asyncio.timeout(30):
                while (found := _LISTENS.search(await process.stderr.readline())) is None:
                    pass
            drained = asyncio.create_task(process.stderr.read())
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(found[1].decode(), max_msg_size=2**27) as socket,
            ):
                tab = Tab(socket)
                listening = asyncio.create_task(tab.listen())
                target = await tab.do("Target.createTarget", url="about:blank")
                attached = await tab.do(
                    "Target.attachToTarget", targetId=target["targetId"], flatten=True
                )
                tab.session = attached["sessionId"]
                for domain in ("Page", "Network", "Runtime", "Log"):
                    await tab.do(f"{domain}.enable")
                yield tab
                listening.cancel()
                drained.cancel()
        finally:
            process.terminate()
            await process.wait()
