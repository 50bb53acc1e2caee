"""What budgets allow: the strictest of those that are open."""

from datetime import UTC, datetime
from typing import Any

import pytest

from controller.kube.wanted.budgets import Allowed, BudgetError, allowed, quantity


def at(text: str) -> float:
    """A moment of November 2026, "02 23:00"; the second is a Monday."""
    return datetime.strptime(f"2026-11-{text}", "%Y-%m-%d %H:%M").replace(tzinfo=UTC).timestamp()


NIGHTS: dict[str, Any] = {"schedule": "0 22 * * *", "duration": "8h"}


def test_without_a_budget_for_it_anything_may_begin() -> None:
    assert allowed([], "Scale", 0.0) == Allowed()
    assert allowed([{"reasons": ["Repair"], "frozen": True}], "Scale", 0.0) == Allowed()


@pytest.mark.parametrize(
    ("now", "is_open", "until"),
    [
        ("02 22:00", True, "03 06:00"),
        ("03 05:59", True, "03 06:00"),
        ("03 06:00", False, "03 22:00"),
        ("02 21:59", False, "02 22:00"),
    ],
)
def test_one_that_opens_every_night(now: str, is_open: bool, until: str) -> None:
    found = allowed([NIGHTS], "Rebalance", at(now))
    assert (found.why == "") is is_open
    assert found.until == at(until)


def test_weekdays_have_names() -> None:
    weekdays = {"schedule": "0 9 * * MON-FRI", "duration": "90m"}
    assert not allowed([weekdays], "Scale", at("06 10:29")).why
    assert allowed([weekdays], "Scale", at("07 10:00")).why == "no budget for Scale is open now"


def test_of_those_that_are_open_the_strictest_counts() -> None:
    budgets = [{"bytesPerMinute": "10G"}, {**NIGHTS, "bytesPerMinute": "512Mi"}]
    assert allowed(budgets, "Rebalance", at("02 23:00")).bytes_per_minute == 512 * 2**20
    assert allowed(budgets, "Rebalance", at("02 12:00")).bytes_per_minute == 10**10


def test_what_is_frozen_stands_still() -> None:
    budgets = [{"bytesPerMinute": "10G"}, {**NIGHTS, "frozen": True}]
    found = allowed(budgets, "Rebalance", at("02 23:00"))
    assert (found.bytes_per_minute, found.why) == (0, "a budget for Rebalance is frozen now")


@pytest.mark.parametrize(
    ("text", "bytes"),
    [(7, 7), ("10G", 10**10), ("1.5Ki", 1536), ("1e9", 10**9), ("2k", 2000), ("1e99", 2**63 - 1)],
)
def test_quantities_are_kubernetes(text: str | int, bytes: int) -> None:  # noqa: A002
    assert quantity(text) == bytes


@pytest.mark.parametrize("text", ["much", "10X", "-1", "", ".", "1.2.3G", "1e999999"])
def test_what_is_no_quantity_is_told(text: str) -> None:
    with pytest.raises(BudgetError, match="is no number of bytes: write 10G or 512Mi"):
        quantity(text)


@pytest.mark.parametrize("schedule", ["0 25 * * *", "nightly", "0 0 31 2 *"])
def test_a_schedule_of_no_time_is_told(schedule: str) -> None:
    budget = {"schedule": schedule, "duration": "1h"}
    with pytest.raises(BudgetError, match="write five fields"):
        allowed([budget], "Scale", at("02 12:00"))
