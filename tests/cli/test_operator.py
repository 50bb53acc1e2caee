"""`placer operator` as a user meets it, where there is no cluster."""

from pathlib import Path

import pytest

from tests.cli.conftest import Placer

HERE = "127.0.0.1:7077"


def test_its_help_names_what_it_needs(placer: Placer) -> None:
    told = placer("operator", "--help").out
    assert all(word in told for word in ("--controller", "--namespace", "--lease", "--metrics"))


def test_a_controller_is_host_and_port(placer: Placer) -> None:
    ended = placer("operator", "--controller", "controller")
    assert ended.code == 2
    assert "--controller 'controller' is no address: write it as host:port" in ended.err


def test_a_token_is_not_sent_in_the_open(placer: Placer) -> None:
    ended = placer("operator", "--controller", "controller:7077", "--token", "token")
    assert ended.code == 2
    assert "set PLACER_TLS_CA" in ended.err


@pytest.mark.parametrize("text", ["", "clusters: [", "apiVersion: v1\nkind: Config\n"])
def test_a_kubeconfig_that_is_none_is_told(
    placer: Placer, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    Path("kubeconfig").write_text(text)
    monkeypatch.setenv("KUBECONFIG", "kubeconfig")
    ended = placer("operator", "--controller", HERE)
    assert ended.code == 2
    assert "no cluster: " in ended.err
    assert "set KUBECONFIG to a kubeconfig, or run this in a pod" in ended.err


def test_without_a_cluster_it_says_where_it_would_be(
    placer: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    ended = placer("operator", "--controller", HERE)
    assert ended.code == 2
    assert "set KUBECONFIG to a kubeconfig, or run this in a pod" in ended.err
