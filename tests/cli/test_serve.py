"""`placer serve`: what is wrong is told before Ray starts; and one true controller."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from controller.ledger.ledger import Ledger
from placer.errors import PlacerError
from tests.cli.conftest import Placer
from tests.controller.server.tiny_service import Authority
from tests.processes import children, folders_of, listening


@pytest.fixture
def serving(placer: Placer, monkeypatch: pytest.MonkeyPatch) -> Placer:
    """Ray must not be started."""

    def connect(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("placer.parallel.connect", connect)
    return placer


def refused(serving: Placer, *args: str) -> str:
    ended = serving("serve", *args)
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    return line


def test_other_hosts_may_not_listen_in(serving: Placer) -> None:
    line = refused(serving, "--listen", "0.0.0.0:7077")
    assert "0.0.0.0:7077 can be reached from other hosts" in line
    assert "--insecure" in line


@pytest.mark.parametrize("address", ["7077", "host:port", "127.0.0.1:70770"])
def test_what_is_no_address_is_told(serving: Placer, address: str) -> None:
    assert f"cannot listen on {address!r}" in refused(serving, "--listen", address)


def test_a_config_that_cannot_be_read_is_told(serving: Placer) -> None:
    assert "no.yaml" in refused(serving, "--config", "no.yaml")
    Path("c.yaml").write_text("default: {mode: eager}\n")
    line = refused(serving, "--config", "c.yaml")
    assert "c.yaml: default.mode" in line
    assert "docs/controller.md" in line


def test_tokens_and_certificates_are_looked_at(serving: Placer) -> None:
    Path("t.yaml").write_text("agent: [short]\n")
    assert "t.yaml: agent.0" in refused(serving, "--tokens", "t.yaml")
    assert "needs its key" in refused(serving, "--tls-cert", "c.pem")
    assert "c.pem" in refused(serving, "--tls-cert", "c.pem", "--tls-key", "k.pem")
    assert "over TLS only" in refused(serving, "--client-ca", "ca.pem")


def test_what_is_wrong_with_certificates_is_noted_before_anything_else(
    placer: Placer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def connect(*_: object, **__: object) -> None:
        raise PlacerError("as far as this")

    monkeypatch.setattr("placer.parallel.connect", connect)
    ours = Authority(tmp_path, "ours")
    yesterday = datetime.now() - timedelta(days=1)
    ours.sign(not_after=yesterday, not_before=yesterday - timedelta(days=9))
    ours.key.chmod(0o644)
    args = ["--tls-cert", str(ours.certificate), "--tls-key", str(ours.key)]
    ended = placer("serve", "--listen", "127.0.0.1:0", *args)
    expired, readable, end = ended.err.splitlines()
    assert expired.startswith(f"note: {ours.certificate} has expired on ")
    assert readable == f"note: {ours.key} can be read by everybody on this host: chmod 600 it"
    assert (end, ended.code) == ("error: as far as this", 2)


def test_a_ledger_that_is_none_is_left_alone(serving: Placer) -> None:
    Path("placer.db").write_text("my notes")
    assert "placer.db is not a database" in refused(serving)
    assert Path("placer.db").read_text() == "my notes"


def test_a_ledger_in_use_names_its_process(serving: Placer) -> None:
    code = (
        "import sys; from pathlib import Path; from controller.ledger.ledger import Ledger\n"
        "ledger = Ledger(Path('placer.db')); print('open', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        line = refused(serving)
        other.communicate()
    assert f"placer.db is in use by process {other.pid} on " in line


@pytest.mark.parametrize("address", ["9090", "localhost", "127.0.0.1:99999"])
def test_an_address_of_metrics_that_is_none_is_told(serving: Placer, address: str) -> None:
    assert "--metrics" in refused(serving, "--metrics", address)


def test_a_port_of_metrics_that_is_taken_is_told(serving: Placer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"cannot listen on --metrics {address}" in refused(serving, "--metrics", address)


def test_a_port_that_is_taken_is_told_before_ray_starts(serving: Placer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refused(serving, "--listen", address)
    assert f"cannot listen on --listen {address}" in line
    assert "choose another port" in line
    assert "192.0.2.1:7077" in refused(serving, "--listen", "192.0.2.1:7077", "--insecure")


def test_without_its_libraries_it_says_what_to_install(
    serving: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("controller.hosts.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    line = refused(serving)
    assert "placer serve needs ray: pip install aiohttp 'grpcio-health-checking>=" in line
    assert " prometheus-client " in line
    assert "moe-placer" not in line  # which no index has


@pytest.mark.xdist_group("ray")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_true_controller_starts_answers_and_leaves_nothing_behind(
    placer: Placer, tmp_path: Path, number: signal.Signals
) -> None:
    Path("c.yaml").write_text("pools: {big: {mode: automatic}}\n")
    command = [str(Path(sys.executable).with_name("placer")), "serve"]
    command += ["--listen", "127.0.0.1:0", "--config", "c.yaml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serve:
        try:
            assert serve.stdout is not None
            lines = []
            for line in serve.stdout:
                lines.append(line.rstrip("\n"))
                if line.startswith("look: "):
                    break
            found = re.fullmatch(r"the controller listens on (127\.0\.0\.1:\d+)", lines[0])
            assert found is not None
            address = found[1]
            assert lines[1:] == [
                f"its ledger is {tmp_path / 'placer.db'}",
                "big: automatic: moves experts by itself",
                "all other pools: advisory: proposes and moves nothing until `placer approve`",
                f"attach engines: export PLACER_AGENT={address}",
                f"look: placer status --to {address}",
            ]
            ended = placer("status", "--to", address)
            assert (ended.code, ended.err) == (0, "")
            second = placer("serve", "--listen", address)
            assert second.code == 2
            assert "placer.db is in use by process" in second.err
            below = children(serve.pid)
            assert below
            assert {host for _, host in listening(below)} == {"127.0.0.1"}
            assert int(address.rpartition(":")[2]) in {port for port, _ in listening(below)}
            (folder,) = folders_of(below)
            serve.send_signal(number)
            assert serve.wait(timeout=60) == 0
        finally:
            serve.kill()
    until_s = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < until_s:
        time.sleep(0.1)
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
    assert not folder.exists()
    Ledger(Path("placer.db")).close()
    assert not os.path.exists("placer.db-wal")


def test_a_ray_cluster_is_for_the_host_that_is_one(serving: Placer) -> None:
    line = refused(serving, "--host", "process", "--ray", "10.0.0.7:6379")
    assert "--ray 10.0.0.7:6379 is a Ray cluster: give --host ray" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_controller_in_a_plain_process_answers_and_leaves_nothing_behind(
    placer: Placer, number: signal.Signals
) -> None:
    command = [str(Path(sys.executable).with_name("placer")), "serve"]
    command += ["--listen", "127.0.0.1:0", "--host", "process"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as serve:
        try:
            assert serve.stdout is not None
            found = re.fullmatch(r"the controller listens on (.+)\n", serve.stdout.readline())
            assert found is not None
            ended = placer("status", "--to", found[1])
            assert (ended.code, ended.err) == (0, "")
            assert children(serve.pid) == set()  # no Ray; planners come with the first problem
            serve.send_signal(number)
            assert serve.wait(timeout=60) == 0
        finally:
            serve.kill()
    Ledger(Path("placer.db")).close()
