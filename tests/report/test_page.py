import json
import re

import pytest

from placer.report.html import page_report
from placer.report.page import Event, Line, Page, PoolRow, Run, line, newest, page_json
from tests.report.test_html import drawn, without_scripts


def a_run(**more: object) -> Run:
    return Run("one", 1000.0, [PoolRow("chat")], **more)  # type: ignore[arg-type]


def test_a_short_line_stays_as_it_is_without_what_is_not_known() -> None:
    assert line([0, 1, 2, 3], [0.5, None, float("nan"), 0.25]) == Line([0, 3], [0.5, 0.25])


def test_a_long_line_keeps_its_ends_its_highest_and_its_lowest() -> None:
    values = [1.0] * 20_160  # two weeks of minutes
    values[777], values[12_345] = 90.0, -3.0
    found = line(list(range(20_160)), values, points=100)
    assert len(found.values) <= 100
    told = dict(zip(found.at_s, found.values, strict=True))
    assert (told[777], told[12_345]) == (90.0, -3.0)
    assert (found.at_s[0], found.at_s[-1]) == (0, 20_159)


def test_each_stretch_of_a_long_line_has_a_point_of_its_own() -> None:
    found = line(list(range(1000)), [float(at % 7) for at in range(1000)], points=50)
    gaps = [b - a for a, b in zip(found.at_s, found.at_s[1:], strict=False)]
    assert max(gaps) <= 2 * 1000 / 24


def test_of_many_events_the_newest_are_told_and_how_many_there_were() -> None:
    events = [Event(at, "chat", f"decision-{at}", "decision", "hold", "") for at in range(5)]
    assert newest(events, most=5) == (events, [])
    found, notes = newest(events[::-1], most=2)
    assert found == events[3:]
    assert notes == ["The time line has the newest 2 of 5 events."]


def test_the_model_is_plain_json() -> None:
    page = Page("a", "ledger", [a_run(lines={"chat": {"gpus": line([0], [4])}})])
    told = json.loads(page_json(page))
    assert told["runs"][0]["lines"]["chat"]["gpus"] == {"at_s": [0.0], "values": [4.0]}
    assert told["runs"][0]["pools"][0]["balancedness"] is None


def test_the_page_is_one_file_that_asks_the_network_for_nothing() -> None:
    text = page_report(Page("a", "ledger", [a_run()]))
    assert "default-src 'none'" in text
    assert "connect-src" not in without_scripts(text)
    assert re.findall(r'(?:src|href)="([^"]*)"', without_scripts(text)) == ["#main"]
    assert text.count("plotly.js v") <= 2  # it says so once or twice of itself


def test_the_page_of_a_controller_holds_no_data_and_may_ask_its_own_server() -> None:
    text = page_report(None)
    assert drawn(text) is None
    assert "connect-src 'self'" in without_scripts(text)


@pytest.mark.parametrize("reason", ["</script><script>alert(1)</script>", "<img src=x>"])
def test_a_reason_is_no_markup(reason: str) -> None:
    event = Event(0, "chat", "decision-1", "decision", "hold", reason)
    text = page_report(Page("a", "ledger", [a_run(events=[event])]))
    assert reason not in text
    assert drawn(text)["runs"][0]["events"][0]["reason"] == reason
