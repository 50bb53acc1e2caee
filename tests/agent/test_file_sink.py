import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from placer.agent import file_sink, folder
from placer.agent.file_sink import FileSink
from placer.agent.recording import Recording
from placer.agent.sampling import Sampling
from placer.errors import FileError, PlacerError
from placer.files.plans import write_plan
from placer.files.routing import read_header, read_profile, read_trace
from placer.pace import Pace
from placer.profile import Profile, merge, of_trace
from placer.worker import Status
from tests.agent.workers import a_plan, a_recording, a_sequence, a_status, a_worker
from tests.builders import a_model

PROMPT = [[[0], [1]], [[0], [2]], [[3], [1]]]  # 3 tokens, 2 layers, top-1
DECODED = [[[2], [2]]]


def a_sink(directory: Path) -> FileSink:
    return FileSink(directory, a_worker(), a_model())


def sampled(first_id: int, tokens: int = 3) -> Recording:
    """A recording with one sampled request."""
    return a_recording(prefill=PROMPT, sampled=[a_sequence(PROMPT[:1] * tokens, first_id)])


def first_ids(directory: Path) -> dict[str, list[int]]:
    """The first vocabulary id of each sequence, by trace file."""
    found = {}
    for path in folder.traces(directory):
        trace = read_trace(path, a_model())
        assert trace.token_ids is not None
        starts = np.cumsum(trace.seq_lens) - trace.seq_lens
        found[path.name] = trace.token_ids[starts].tolist()
    return found


def assert_same(profile: Profile, wanted: Profile) -> None:
    for name in ("load", "transitions", "coactivation"):
        assert (getattr(profile, name) == getattr(wanted, name)).all(), name
    for name in ("top_k", "tokens", "sequences", "phase", "window_s", "spread"):
        assert getattr(profile, name) == getattr(wanted, name), name


def test_profiles_add_up_over_pushes(tmp_path: Path) -> None:
    sink = a_sink(tmp_path)
    pushed = [
        a_recording(prefill=PROMPT, window_s=5.0),
        a_recording(prefill=PROMPT[1:], decode=DECODED, window_s=6.5),
        a_recording(decode=DECODED * 2, window_s=1.0),
    ]
    for number, recording in enumerate(pushed, 1):
        sink.push(number, recording)
    for phase, tokens in (("prefill", 5), ("decode", 3)):
        parts = [p for one in pushed for p in one.profiles() if p.phase == phase]
        found = read_profile(tmp_path / "worker-0" / f"{phase}.npz")
        assert found.tokens == tokens
        # In which a phase had no tokens, it had time for them all the same.
        assert_same(found, replace(merge(parts), window_s=5.0 + 6.5 + 1.0))


def test_the_pace_adds_up_over_pushes_and_is_in_traces_too(tmp_path: Path) -> None:
    """A second of prefill, then 4 s in which 8 decoding steps take one."""
    sink = a_sink(tmp_path)
    paces = (
        {"prefill": Pace(1, 1.0, 1.0), "decode": Pace(0, 0.0, 1.0)},
        {"prefill": Pace(0, 0.0, 4.0), "decode": Pace(8, 1.0, 4.0)},
    )
    sink.push(1, replace(sampled(100), window_s=1.0, paces=paces[0]))
    more = a_recording(decode=DECODED, sampled=[a_sequence(PROMPT, 200)], window_s=4.0)
    sink.push(2, replace(more, paces=paces[1]))
    own = tmp_path / "worker-0"
    assert read_profile(own / "prefill.npz").pace == Pace(1, 1.0, 5.0)
    assert read_profile(own / "decode.npz").pace == Pace(8, 1.0, 5.0)
    trace = read_trace(own / "traces" / "000001.npz", a_model(2, 4))
    assert trace.pace == of_trace(trace).pace == Pace(9, 2.0, 5.0)


def test_a_file_is_as_the_last_push_left_it_and_names_the_model(tmp_path: Path) -> None:
    sink = a_sink(tmp_path)
    for number in (1, 2, 3):
        sink.push(number, sampled(number))
        assert read_profile(tmp_path / "worker-0" / "prefill.npz").tokens == 3 * number
    for path in (*folder.profiles(tmp_path), *folder.traces(tmp_path)):
        assert read_header(path).meta["model"]["name"] == "tiny"


def test_a_phase_that_never_had_tokens_has_no_file(tmp_path: Path) -> None:
    a_sink(tmp_path).push(1, a_recording(decode=DECODED))
    assert folder.profiles(tmp_path) == [tmp_path / "worker-0" / "decode.npz"]
    assert folder.traces(tmp_path) == []


def test_workers_write_side_by_side(tmp_path: Path) -> None:
    for rank in (0, 1):
        FileSink(tmp_path, a_worker(rank), None).push(1, sampled(rank))
    assert [path.parent.name for path in folder.profiles(tmp_path)] == ["worker-0", "worker-1"]
    assert len(folder.traces(tmp_path)) == 2


def test_a_trace_file_grows_until_it_is_large_and_then_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 3 tokens x 2 layers x top-1 in int16 are 12 bytes: a file is large with its second request.
    monkeypatch.setattr(file_sink, "TRACE_BYTES", 12)
    sink = a_sink(tmp_path)
    seen = []
    for number in range(1, 6):
        sink.push(number, sampled(100 * number))
        seen.append(first_ids(tmp_path))
    assert seen[0] == {"000001.npz": [100]}
    assert seen[1] == {"000001.npz": [100, 200]}
    assert seen[2] == {"000001.npz": [100, 200], "000002.npz": [300]}
    assert seen[4] == {
        "000001.npz": [100, 200],
        "000002.npz": [300, 400],
        "000003.npz": [500],
    }


def test_a_push_without_sampled_requests_leaves_the_traces_alone(tmp_path: Path) -> None:
    sink = a_sink(tmp_path)
    sink.push(1, sampled(100))
    sink.push(2, a_recording(decode=DECODED))
    sink.push(3, sampled(300))
    assert first_ids(tmp_path) == {"000001.npz": [100, 300]}


def test_only_the_newest_trace_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_sink, "TRACE_BYTES", 0)  # a file for every push
    monkeypatch.setattr(file_sink, "TRACES_KEPT", 3)
    sink = a_sink(tmp_path)
    for number in range(1, 8):
        sink.push(number, sampled(100 * number))
    assert first_ids(tmp_path) == {"000005.npz": [500], "000006.npz": [600], "000007.npz": [700]}
    assert read_profile(tmp_path / "worker-0" / "prefill.npz").tokens == 21


@pytest.mark.parametrize("failing", ["write_trace", "write_profile"])
def test_a_push_that_failed_half_way_and_is_made_again_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    sink = a_sink(tmp_path)
    sink.push(1, sampled(100))
    second = a_recording(PROMPT, DECODED, sampled=[a_sequence(PROMPT, 200)])
    write: Callable[..., None] = getattr(file_sink, failing)

    def fail(path: Path, *args: object) -> None:
        if path.name != "prefill.npz":  # which is written before decode.npz
            raise FileError("the disk is full")
        write(path, *args)

    with monkeypatch.context() as broken:
        broken.setattr(file_sink, failing, fail)
        for _ in range(2):
            with pytest.raises(FileError, match="the disk is full"):
                sink.push(2, second)
    sink.push(2, second)
    tokens = [read_profile(path).tokens for path in folder.profiles(tmp_path)]
    assert tokens == [6, 1]
    assert first_ids(tmp_path) == {"000001.npz": [100, 200]}


def test_the_plan_is_the_highest_epoch_above_the_one_that_is_known(tmp_path: Path) -> None:
    sink = a_sink(tmp_path)
    assert sink.plan(0) is None
    (tmp_path / "plans").mkdir()
    plans = {9: a_plan([[0, 1, 2, 3], [3, 2, 1, 0]]), 10: a_plan([[3, 2, 1, 0], [0, 1, 2, 3]])}
    for epoch, plan in plans.items():
        write_plan(tmp_path / "plans" / f"{epoch}.json", plan)
    (tmp_path / "plans" / "newest.json").write_text("a name that is no number")
    for after in (0, 8, 9):
        found = sink.plan(after)
        assert found is not None
        epoch, plan_or_error = found
        assert epoch == 10
        assert not isinstance(plan_or_error, PlacerError)
        assert plan_or_error.placement.digest == plans[10].placement.digest
    assert sink.plan(10) is None
    assert sink.plan(11) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is not JSON"), ("{}", "is not a plan"), ('{"format": "placer.plan"}', "version None")],
)
def test_a_plan_that_cannot_be_read_is_an_epoch_with_its_error(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "plans").mkdir()
    write_plan(tmp_path / "plans" / "000001.json", a_plan())
    (tmp_path / "plans" / "000002.json").write_text(content)
    found = a_sink(tmp_path).plan(1)
    assert found is not None
    epoch, error = found
    assert epoch == 2
    assert isinstance(error, PlacerError)
    assert "000002.json" in str(error)
    assert message in str(error)


def test_a_status_comes_back_as_it_was(tmp_path: Path) -> None:
    statuses = [
        Status(a_worker(0), 3, "sha256:ab", 4, "why not", 7, 1, "what keeps it"),
        Status(a_worker(1, can_apply=False, records=False)),
    ]
    for status in statuses:
        FileSink(tmp_path, status.worker, None).report(status)
    assert folder.read_statuses(tmp_path, time.time()) == statuses


def test_the_status_is_the_one_reported_last(tmp_path: Path) -> None:
    sink = a_sink(tmp_path)
    for tokens in (1, 2):
        sink.report(a_status(tokens=tokens))
    assert folder.read_statuses(tmp_path, time.time()) == [a_status(tokens=2)]


@pytest.mark.parametrize("content", ["{}", "not JSON", '{"worker": {}}', '{"worker": 1}'])
def test_a_status_that_no_agent_wrote_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "worker-0").mkdir()
    (tmp_path / "worker-0" / "status.json").write_text(content)
    with pytest.raises(FileError, match=r"worker-0/status\.json: .*: is it an agent's\?"):
        folder.read_statuses(tmp_path, time.time())


def pushes(sink: FileSink) -> None:
    sink.push(1, sampled(100))


def reports(sink: FileSink) -> None:
    sink.report(a_status())


@pytest.mark.parametrize("does", [pushes, reports])
@pytest.mark.parametrize("place", ["recording", "recording/worker-0"])
def test_a_directory_that_cannot_be_made_is_named_with_the_remedy(
    tmp_path: Path, place: str, does: Callable[[FileSink], None]
) -> None:
    path = tmp_path / place
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file in its place")
    with pytest.raises(PlacerError) as failed:
        does(a_sink(tmp_path / "recording"))
    assert str(path) in str(failed.value)
    assert "choose another place" in str(failed.value)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    ("name", "does"),
    [("prefill.npz", pushes), ("traces/000001.npz", pushes), ("status.json", reports)],
)
def test_a_file_that_cannot_be_written_is_named_and_written_once_it_can(
    tmp_path: Path, name: str, does: Callable[[FileSink], None]
) -> None:
    sink, path = a_sink(tmp_path), tmp_path / "worker-0" / name
    path.mkdir(parents=True)  # a directory in its place
    with pytest.raises(PlacerError, match="cannot write") as failed:
        does(sink)
    assert str(path) in str(failed.value)
    path.rmdir()
    does(sink)
    assert path.is_file()
    assert [read_profile(found).tokens for found in folder.profiles(tmp_path)] in ([], [3])


# Pushes as fast as it can, a large trace and two profiles at a time.
PUSHING = """
import os
import sys
from pathlib import Path
from placer.agent import file_sink
from tests.agent.workers import a_recording, a_sequence, a_status, a_worker

file_sink.TRACE_BYTES = 4000
tokens = [[[0], [1]], [[2], [3]]] * 50
recording = a_recording(tokens, tokens, [a_sequence(tokens)])


def push_on(directory):
    sink = file_sink.FileSink(Path(directory), a_worker(), None)
    number = 0
    while True:
        number += 1
        sink.push(number, recording)
        sink.report(a_status(tokens=number))
        if number == 1:
            print("pushed", flush=True)


for line in sys.stdin:  # a directory: push there, in a process of its own
    pid = os.fork()
    if not pid:
        push_on(line.strip())
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("ended", flush=True)
"""


def test_a_process_that_is_killed_at_any_moment_leaves_only_whole_files(tmp_path: Path) -> None:
    """Killed 20 times, at random places of the loop. Forks of one process, which imports once."""
    rng = random.Random(0)
    command = [sys.executable, "-c", PUSHING]
    root = Path(__file__).parents[2]
    pushing = subprocess.Popen(
        command, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with pushing:
        assert pushing.stdin
        assert pushing.stdout
        for number in range(20):
            pushing.stdin.write(f"{tmp_path / str(number)}\n")
            pushing.stdin.flush()
            said = {pushing.stdout.readline().strip() for _ in range(2)}
            (pid,) = said - {"pushed"}
            time.sleep(rng.uniform(0, 0.02))  # a few turns of its loop
            os.kill(int(pid), signal.SIGKILL)
            assert pushing.stdout.readline() == "ended\n"
        pushing.stdin.close()
    for number in range(20):
        directory = tmp_path / str(number)
        phases = [read_profile(path).phase for path in folder.profiles(directory)]
        assert phases == ["prefill", "decode"]
        assert len(folder.traces(directory)) >= 1
        for path in folder.traces(directory):
            assert read_trace(path, a_model()).tokens % 100 == 0
        for path in directory.glob("worker-0/status.json"):
            assert path.read_text().endswith("}\n")
        folder.read_statuses(directory, time.time())


def test_a_directory_takes_all_requests_that_there_is_room_for(tmp_path: Path) -> None:
    assert FileSink(tmp_path, a_worker(), None).sampling == Sampling(0.0, token_ids=True)
