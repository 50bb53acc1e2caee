"""Hypothesis without deadlines; and figures that tests measured, told in the end."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

# The first example may wait for a compiler.
settings.register_profile("placer", deadline=None)
settings.load_profile("placer")

FIGURE = "figure"


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Say something that stands in the summary, also of tests that pass."""
    return lambda text: record_property(FIGURE, text)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    for report in reports:
        for name, text in report.user_properties:
            if name == FIGURE:
                terminalreporter.write_line(text)
