"""The page in a real Chromium: of a ledger, and of a controller that runs."""

from pathlib import Path

import pytest

from controller.page.live import Live
from controller.page.of_ledger import of_ledgers
from controller.page.served import serving
from controller.server.security import Listening
from placer.report.html import page_report
from tests.browser import WIDTHS, a_tab, needs_chromium
from tests.controller.page.test_served import TOKENS
from tests.controller.page.test_sources import a_proposal
from tests.controller.server.tiny_server import Setting, a_world
from tests.controller.server.tiny_service import OPERATOR, WRONG, write
from tests.controller.tiny_pool import asynchronous, in_virtual_time

pytestmark = [needs_chromium, pytest.mark.xdist_group("chromium")]

IS_WIDER = "document.documentElement.scrollWidth > innerWidth"
NEED_NAMES = "'[role=img], [role=region], select, input'"
NAMELESS = "(one) => !one.ariaLabel && !one.hasAttribute('aria-labelledby') && !one.labels?.length"
REFUSED = "document.getElementById('status').innerText.startsWith('The token is refused')"
SHOWS = "!document.getElementById('main').hidden"


def text_of(id: str) -> str:
    return f"document.getElementById('{id}').innerText"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Of a ledger with a plan that waits."""

    @in_virtual_time
    async def fill() -> None:
        (await a_proposal(tmp_path / "placer.db")).disk.close()

    fill()
    found = tmp_path / "page.html"
    found.write_text(page_report(of_ledgers([tmp_path / "placer.db"])))
    return found


@asynchronous
async def drawn(page: Path, width: int, dark: bool) -> None:
    async with a_tab() as tab:
        await tab.open(page.as_uri(), width, dark)
        await tab.until(SHOWS)
        assert "placer approve plan-1" in await tab.see(text_of("facts"))
        assert "propose" in await tab.see(text_of("story"))
        assert await tab.see("document.querySelectorAll('#heat .main-svg').length") >= 2
        assert not await tab.see(IS_WIDER)
        assert tab.errors == []
        assert [one for one in tab.asked if not one.startswith(("file:", "data:"))] == []
        ink = await tab.see("getComputedStyle(document.body).color")
        assert ink == ("rgb(230, 233, 239)" if dark else "rgb(28, 34, 48)")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_drawn_whatever_the_screen_without_errors_or_requests(
    page: Path, width: int, dark: bool
) -> None:
    drawn(page, width, dark)


@asynchronous
async def by_keyboard(page: Path) -> None:
    async with a_tab() as tab:
        await tab.open(page.as_uri())
        await tab.until(SHOWS)
        focused = []
        for _ in range(6):
            await tab.press("Tab")
            focused.append(
                await tab.see("document.activeElement.id || document.activeElement.className")
            )
        assert focused == ["skip", "scroll", "choose-placer.db-chat", "pool", "copy-plan-1", ""]
        assert await tab.see("document.activeElement.tagName") == "SUMMARY"
        await tab.press("Enter")
        await tab.until("document.querySelector('#line-0-table table') !== null")
        assert "0.625" in await tab.see(text_of("line-0-table"))
        assert (
            await tab.see(f"[...document.querySelectorAll({NEED_NAMES})].filter({NAMELESS})") == []
        )
        assert await tab.see("document.documentElement.lang") == "en"


def test_it_can_be_used_by_keyboard_and_every_chart_has_a_table(page: Path) -> None:
    by_keyboard(page)


@asynchronous
async def signs_in(tokens: Path) -> None:
    listening = Listening("127.0.0.1:0", tokens=tokens)
    async with (
        a_world(Setting(tokens=tokens, token=OPERATOR)) as world,
        serving(world.loop, Live(world.loop, ""), listening) as port,
        a_tab() as tab,
    ):
        await world.register(pool="secret-pool")
        address = f"http://127.0.0.1:{port}/"
        await tab.open(address)
        await tab.until("!document.getElementById('login').hidden")
        assert not await tab.see(SHOWS)
        assert "secret-pool" not in await tab.see("document.documentElement.innerHTML")
        for token, then in ((WRONG, REFUSED), (OPERATOR, SHOWS)):
            await tab.see(f"document.getElementById('token').value = '{token}'")
            await tab.see("document.querySelector('#login button').click()")
            await tab.until(then)
        assert "secret-pool" in await tab.see(text_of("fleet"))
        where = "[location.href, document.cookie, localStorage.length]"
        assert await tab.see(where) == [address, "", 0]
        assert await tab.see("sessionStorage.getItem('token')") == OPERATOR
        assert all(one.startswith((address, "data:", "blob:")) for one in tab.asked)
        assert not any(OPERATOR in one or WRONG in one for one in tab.asked)
        # A browser logs every 401 by itself.
        assert [one for one in tab.errors if "401" not in one] == []
        await world.register(pool="another-pool")
        await tab.until("document.querySelectorAll('#fleet button').length === 2")
        await tab.see("document.getElementById('leave').click()")
        assert not await tab.see(SHOWS)
        assert "secret-pool" not in await tab.see("document.body.innerText")
        assert await tab.see("sessionStorage.length") == 0


def test_without_a_token_a_browser_sees_nothing_and_with_one_it_follows(tmp_path: Path) -> None:
    signs_in(write(tmp_path / "tokens.yaml", TOKENS))
