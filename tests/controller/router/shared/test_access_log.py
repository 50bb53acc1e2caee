"""A line a request, and never what was asked."""

from pathlib import Path

import pytest

from controller.router.shared import access_log
from controller.router.shared.access_log import AccessLog
from placer.errors import FileError
from tests.controller.router.front.tiny_engine import Engine, engines
from tests.controller.router.front.tiny_front import COMPLETIONS, ask, completion, fronted, run


@run
async def test_a_line_tells_who_what_and_how_and_no_prompt(tmp_path: Path) -> None:
    engine = Engine()
    path = tmp_path / "access.log"
    async with engines(engine), fronted(engine, log=str(path)) as here:
        await ask(here.port, COMPLETIONS + "?secret=1", completion(prompt="my secret"))
        engine.error = (400, b'{"error": {"message": "secret"}}')
        await ask(here.port, COMPLETIONS, completion(prompt="my secret"))
    first, second = path.read_text().splitlines()
    assert first.startswith(f"127.0.0.1 POST {COMPLETIONS} 200 ")
    assert first.endswith(" engine-1/0 1")
    assert second.startswith(f"127.0.0.1 POST {COMPLETIONS} 400 ")
    assert "secret" not in first + second


def test_lines_that_cannot_be_written_in_time_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_log, "MOST", 1)
    log = AccessLog(str(tmp_path / "a.log"))
    for _ in range(3):
        log.add("p", b"GET", "/r", 200, 1, 0.5, "e/0", 1, 'a "b"\nc')
    log.close()
    assert (
        tmp_path / "a.log"
    ).read_text() == "p GET /r 200 1 0.5000 e/0 1 \"a 'b' c\"\n- 2 more requests\n"


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="choose another file"):
        AccessLog(str(tmp_path / "no" / "a.log"))
