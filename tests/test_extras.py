"""Commands that install what is missing name packages that indexes have."""

from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest

from placer import extras

SAID = ["numpy>=2.0", "a>=1,<2; extra == 'mine'", 'b ; python_version > "3" and extra == "mine"',
        "c; extra == 'mine2'"]  # fmt: skip


def test_an_extra_is_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "requires", lambda name: SAID)
    assert extras.command("mine") == "pip install 'a>=1,<2' b"
    error = extras.MissingError("placer serve", "mine", "b")
    assert str(error) == "placer serve needs b: pip install 'a>=1,<2' b"


def test_from_its_sources_it_is_installed_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", none)
    assert extras.command("mine") == "pip install '.[mine]'"
