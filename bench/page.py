"""The page: a controller of 64 pools, two weeks of two simulated controllers, and nobody looking.

Printed are the server's seconds, and a browser's from the address to what is drawn.
"""

import asyncio
import base64
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from controller.config import Config
from controller.engines.in_memory import MemoryEngine, MemoryEngines, MemoryPlanner
from controller.fleet.workers import Fleet
from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from controller.ledger.watched import WatchedLedger
from controller.loop import Loop
from controller.page.live import Live
from controller.page.served import serving
from controller.server.security import Listening
from placer.clock import SystemClock
from placer.report.html import page_report
from placer.report.page import Event, Heat, Page, Planned, PoolRow, Run, line, page_json
from tests.browser import a_tab
from tests.controller.tiny_pool import BYTES, HOME, SKEWED, a_delta, a_policy, a_registration

POOLS, ENGINES = 64, 4
MINUTES = 14 * 24 * 60
QUIET_S = 20.0
WATCH = """
const watched = { fleetAt: "#fleet button", chartsAt: ".main-svg" };
new MutationObserver(() => {
  for (const [name, what] of Object.entries(watched))
    if (document.querySelector(what))
      requestAnimationFrame(() => { window[name] ??= performance.now(); });
}).observe(document, { childList: true, subtree: true });
"""


def run() -> None:
    asyncio.run(_measure())


async def _measure() -> None:
    clock = SystemClock()
    ledger = WatchedLedger(Ledger(None, FORMS), clock)
    config = Config(a_policy())
    fleet = Fleet(lambda pool: config.of(pool).window_s, clock)
    names = [
        (f"pool-{pool:02}", f"e{engine}") for pool in range(POOLS) for engine in range(ENGINES)
    ]
    engines = MemoryEngines({name: MemoryEngine(HOME, BYTES) for name in names})
    loop = Loop(config, ledger, fleet, engines, MemoryPlanner(clock))
    live = Live(loop, "")
    for pool, engine in names:
        told = a_registration(engine, pool=pool)
        fleet.register(told)
        fleet.push(told.id, 1, [a_delta(SKEWED)])
    for _ in range(3):
        await loop.tick()
    begun_s = time.perf_counter()
    told_ = page_json(await live.page())
    took_s = time.perf_counter() - begun_s
    print(f"64 pools: {took_s * 1e3:.0f} ms of the server, {len(told_) / 1e3:.0f} kB")
    async with serving(loop, live, Listening("127.0.0.1:0")) as port:
        address = f"http://127.0.0.1:{port}/"
        print(f"64 pools: {await _seconds(address)}")
        begun, cpu_s = time.perf_counter(), time.process_time()
        await asyncio.sleep(QUIET_S)
        share = (time.process_time() - cpu_s) / (time.perf_counter() - begun)
        print(f"nobody looks: {share:.3%} of a core for the port")
        cpu_s = time.process_time()
        for _ in range(100):
            await loop.looks["page"]()
        each_s = (time.process_time() - cpu_s) / 100
        print(f"a look at 64 pools, every 30 s: {each_s * 1e3:.2f} ms, {each_s / 30:.4%} of a core")
    begun_s = time.perf_counter()
    text = page_report(Page("two weeks", "simulation", [_weeks("a", 0), _weeks("b", 1)]))
    took_s = time.perf_counter() - begun_s
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(text)
        print(f"two weeks: written in {took_s:.2f} s, {len(text) / 1e6:.1f} MB")
        print(f"two weeks: {await _seconds(file.as_uri())}")


async def _seconds(address: str) -> str:
    """Until the fleet is painted, and until charts are: medians of five, as the page's clock has
    it, which begins with the navigation."""
    found = []
    async with a_tab() as tab:
        await tab.do("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        for _ in range(5):
            await tab.open(address)
            await tab.until("window.chartsAt")
            found.append(await tab.see("[fleetAt, chartsAt]"))
    fleet, charts = np.median(np.array(found), axis=0) / 1e3
    return f"fleet after {fleet:.2f} s in a browser, charts after {charts:.2f} s"


def _weeks(name: str, seed: int) -> Run:
    rng, at_s = np.random.default_rng(seed), [60.0 * minute for minute in range(MINUTES)]
    pools = ["chat", "code"]
    lines: dict[str, Any] = {
        pool: {metric: line(at_s, rng.random(MINUTES).tolist())
               for metric in ("balancedness", "gpus", "waiting", "running", "in_time", "fanout")}
        for pool in pools
    }  # fmt: skip
    events = [
        Event(
            600.0 * at, pools[at % 2], f"decision-{at}", "decision", "hold", "it does not pay " * 8
        )
        for at in range(3000)
    ]
    heat = Heat(58, 32, 2.0, *(base64.b64encode(rng.bytes(58 * 32)).decode() for _ in range(2)))
    plans = [
        Planned(f"plan-{at}", pools[at % 2], 6000.0 * at, "applied", "it pays", 32, 400, 10**9, 0.1,
                heat=heat)
        for at in range(200)
    ]  # fmt: skip
    return Run(name, 1.8e9, [PoolRow(pool) for pool in pools], lines, events, plans)
