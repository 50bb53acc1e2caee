"""`placer record` with a few lines of Python in place of an engine: they record as its agent does.

A request here has 40 tokens, 2 layers, 16 experts and top-2.
"""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from placer.agent import folder
from placer.files.plans import read_plan
from placer.files.routing import read_header, read_profile
from placer.model import ModelShape
from tests.cli.conftest import Ended, Placer

MODEL = ModelShape("sixteen", 2, 16, 2, hidden=4096, moe_intermediate=2048)

AGENT = f"""
import os, sys, time
from pathlib import Path
import numpy as np
from placer.agent.file_sink import FileSink
from placer.model import ModelShape
from tests.agent.workers import a_recording, a_sequence, a_status, a_worker

worker = a_worker(experts=16, top_k=2, slots=16, ep_size=8)
sink = FileSink(Path(os.environ["PLACER_AGENT"]), worker, {MODEL!r})
rng = np.random.default_rng(0)


def request(first):
    hot = 1 / np.arange(1, 17)
    choose = lambda: rng.choice(16, 2, replace=False, p=hot / hot.sum()).tolist()
    return [[choose(), choose()] for _ in range(40)]


def push(number, sampled):
    tokens = request(number)
    sequences = [a_sequence(tokens)] if sampled else []
    sink.push(number, a_recording(tokens, tokens[:10], sequences, experts=16))
"""

SERVES = "for number in range(1, 5): push(number, sampled=True)"
COUNTS_ALONE = "push(1, sampled=False)"
SERVES_UNTIL_STOPPED = """
push(1, sampled=True)
try:
    print("serving", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    push(2, sampled=True)
"""

# placer, where an engine is given less time to write what is left
IMPATIENT = """
from placer.cli import main, record
record.WRITES_S = 0.1
main.run()
"""


@pytest.fixture
def recording(placer: Placer, monkeypatch: pytest.MonkeyPatch) -> Placer:
    """``placer`` whose COMMANDs find the tests' builders."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("PLACER_AGENT", "elsewhere")
    return placer


def an_engine(does: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", AGENT + does)


def run_suggested(ended: Ended) -> subprocess.CompletedProcess[str]:
    """What the last line says to do next, by a shell."""
    start, _, command = ended.out.splitlines()[-1].partition(": ")
    assert start == "next"
    program, _, rest = command.partition(" ")
    assert program == "placer"
    here = f"{shlex.quote(sys.executable)} -m placer.cli.main {rest}"
    return subprocess.run(here, shell=True, capture_output=True, text=True)


def test_it_ends_with_the_profile_of_all_traffic(recording: Placer) -> None:
    ended = recording("record", "--out", "r", *an_engine(SERVES))
    assert ended.code == 0
    total = read_profile(Path("r/profile.npz"))
    assert (total.tokens, total.phase) == (4 * 50, "mixed")
    assert (total.load.shape, total.top_k) == ((2, 16), 2)
    assert read_header(Path("r/profile.npz")).meta["model"]["name"] == "sixteen"
    first, _ = ended.out.splitlines()
    assert first == "recorded 200 tokens of 2 layers x 16 experts, 160 of them token by token"
    assert not Path("elsewhere").exists()


def test_what_it_says_to_do_next_makes_a_plan(recording: Placer) -> None:
    ended = recording("record", "--out", "r", *an_engine(SERVES))
    assert "r/worker-*/traces/*.npz" in ended.out
    assert "--holdout 0.5" in ended.out
    done = run_suggested(ended)
    assert (done.returncode, done.stderr.count("error")) == (0, 0)
    plan = read_plan(Path("plan.json"))
    assert plan.holdout is not None
    assert (plan.placement.experts, plan.placement.gpus) == (16, 8)
    assert Path("report.html").exists()


def test_where_no_request_was_sampled_the_profile_is_what_to_plan_from(recording: Placer) -> None:
    ended = recording("record", "--out", "r", *an_engine(COUNTS_ALONE))
    assert "50 tokens of 2 layers x 16 experts, 0 of them token by token" in ended.out
    assert "placer plan r/profile.npz --gpus 8 --out" in ended.out
    assert run_suggested(ended).returncode == 0
    assert read_plan(Path("plan.json")).placement.experts == 16


def test_a_command_keeps_its_own_options_and_learns_where_to_record(recording: Placer) -> None:
    code = (
        "import os, sys\n"
        "open('seen', 'w').write(f\"{sys.argv[1:]} {os.environ['PLACER_AGENT']}\")\n"
    )
    recording("record", "--out", "r", "--", sys.executable, "-c", code, "--out", "x", "-h")
    assert Path("seen").read_text() == f"['--out', 'x', '-h'] {Path('r').absolute()}"


def test_an_engine_that_fails_in_the_end_has_recorded_all_the_same(recording: Placer) -> None:
    ended = recording("record", "--out", "a/b/r", *an_engine(f"{COUNTS_ALONE}\nsys.exit(7)"))
    assert "ended with code 7" in ended.err
    assert ended.code == 0
    assert read_profile(Path("a/b/r/profile.npz")).tokens == 50


def test_a_command_that_does_not_exist_is_named(recording: Placer) -> None:
    ended = recording("record", "--out", "r", "--", "no-such-engine", "serve")
    assert (ended.code, ended.out) == (2, "")
    assert "cannot start no-such-engine" in ended.err
    assert "give a command that can be run" in ended.err


@pytest.mark.parametrize("code", ["", "raise SystemExit(1)"])
def test_a_command_that_records_nothing_is_an_error(recording: Placer, code: str) -> None:
    ended = recording("record", "--out", "r", "--", sys.executable, "-c", code)
    assert (ended.code, ended.out) == (2, "")
    assert "nothing was recorded in r" in ended.err
    assert not Path("r/profile.npz").exists()


def test_a_recording_that_exists_is_not_overwritten(recording: Placer) -> None:
    assert recording("record", "--out", "r", *an_engine(COUNTS_ALONE)).code == 0
    before = {path: path.read_bytes() for path in Path("r").rglob("*.npz")}
    code = "open('started', 'w')"
    ended = recording("record", "--out", "r", "--", sys.executable, "-c", code)
    assert (ended.code, ended.out) == (2, "")
    assert "r holds a recording" in ended.err
    assert not Path("started").exists()
    assert {path: path.read_bytes() for path in Path("r").rglob("*.npz")} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_for_the_engine_and_then_the_profile_is_made(
    recording: Placer, number: signal.Signals
) -> None:
    """A terminal's goes to the whole group; `kill` and a job's end go to placer alone."""
    stops = "import signal\nsignal.signal(signal.SIGTERM, signal.default_int_handler)\n"
    command = [sys.executable, "-c", IMPATIENT, "record", "--out", "r"]
    with subprocess.Popen(
        [*command, *an_engine(stops + SERVES_UNTIL_STOPPED)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "serving\n"
        assert folder.profiles(Path("r")) != []
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, err.count("Traceback")) == (0, 0)
    assert out.startswith("recorded 100 tokens")
    assert read_profile(Path("r/profile.npz")).tokens == 100
