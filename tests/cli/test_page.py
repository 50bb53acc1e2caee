"""placer page: a ledger's file as one page."""

from contextlib import closing
from pathlib import Path

from typer.testing import CliRunner

from controller.forms import FORMS
from controller.ledger.ledger import Ledger
from placer.cli.main import app


def test_a_ledgers_page_is_written(tmp_path: Path) -> None:
    ledger, page = tmp_path / "placer.db", tmp_path / "page.html"
    Ledger(ledger, FORMS).close()
    told = CliRunner().invoke(app, ["page", "--ledger", str(ledger), "--out", str(page)])
    assert told.exit_code == 0, told.output
    assert "placer.db" in page.read_text()


def test_a_ledger_that_is_not_there_is_an_error_and_no_page(tmp_path: Path) -> None:
    ledger, page = tmp_path / "no.db", tmp_path / "page.html"
    told = CliRunner().invoke(app, ["page", "--ledger", str(ledger), "--out", str(page)])
    assert told.exit_code != 0
    assert "there is no ledger" in str(told.exception)
    assert not page.exists()


def test_a_page_of_an_open_ledger_leaves_it_to_its_controller(tmp_path: Path) -> None:
    ledger, page = tmp_path / "placer.db", tmp_path / "page.html"
    with closing(Ledger(ledger, FORMS)) as held:
        told = CliRunner().invoke(app, ["page", "--ledger", str(ledger), "--out", str(page)])
        assert told.exit_code == 0, told.output
        assert held.newest("plan") == []
