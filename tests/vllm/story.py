"""One engine's life, from the first recording to its death; tests ask what happened."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from placer.agent import folder
from placer.files.plans import read_plan, write_plan
from placer.files.routing import read_profile, read_trace
from placer.placement import Placement
from placer.plan import Plan
from placer.profile import Profile
from placer.trace import Trace
from placer.worker import Status
from tests.builders import a_model
from tests.vllm.engines import ROOT, Engine, Generation

TRACES = ROOT / "examples" / "tiny_moe" / "traces"
STREAMS, PROMPT, TOKENS = 16, 160, 600
EXPERTS, REDUNDANT = 16, 4
MODEL = a_model(layers=6, experts=EXPERTS, top_k=2)


@dataclass
class Story:
    """What was seen, in the order in which it happened."""

    prompts: list[list[int]]
    undisturbed: Generation
    recorded: dict[str, Profile]
    trace: Trace
    plan: Plan
    map_before: list[np.ndarray]
    applied: subprocess.CompletedProcess[str]
    disturbed: Generation
    map_after: list[np.ndarray]
    statuses: list[Status]
    afterwards: Generation
    rank_loads: np.ndarray
    refusals: dict[str, list[str]]
    map_after_refusals: list[np.ndarray]
    map_after_disagreement: list[np.ndarray]
    after_kill: list[Profile]


def tell(place: Path) -> Story:
    agents = place / "agents"
    engine = Engine(place, str(agents), width=2, redundant=REDUNDANT)
    try:
        return _tell(place, agents, engine)
    finally:
        engine.close()


def _tell(place: Path, agents: Path, engine: Engine) -> Story:
    prompts = real_prompts()
    undisturbed = engine.generate(prompts, TOKENS)
    # The last token of a request is generated but not routed.
    _until(lambda: _tokens(agents) == STREAMS * (PROMPT + TOKENS - 1))
    recorded = {p: read_profile(agents / "worker-0" / f"{p}.npz") for p in ("prefill", "decode")}
    (traced,) = folder.traces(agents)
    trace = read_trace(traced, MODEL)
    plan_file = place / "plan.json"
    made = _placer(
        "plan", traced, "--gpus", "2", "--redundant", REDUNDANT, "--dispatch", "dedup",
        "--out", plan_file,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    plan = read_plan(plan_file)

    map_before = _maps(engine)
    command = _command("apply", plan_file, "--to", agents)
    with subprocess.Popen(
        command, text=True, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as applying:
        # The agents look once a second: the streams are well under way when they find it.
        _until((agents / "plans" / "000001.json").exists)
        disturbed = engine.generate(prompts, TOKENS)
        out, err = applying.communicate()
    applied = subprocess.CompletedProcess(command, applying.returncode, out, err)
    map_after = _maps(engine)
    statuses = folder.read_statuses(agents, time.time())
    engine.call("placer_count_loads")
    afterwards = engine.generate(prompts, TOKENS)
    rank_loads = np.array(engine.call("placer_rank_loads")[0])

    refusals = {}
    for kind, content in _bad_plans(plan).items():
        epoch = max(int(path.stem) for path in (agents / "plans").iterdir()) + 1
        (agents / "plans" / f"{epoch:06}.json").write_text(content)
        _until(lambda: {status.refused_epoch for status in _statuses(agents)} == {epoch})  # noqa: B023
        refusals[kind] = [status.refused for status in _statuses(agents)]
        engine.generate(prompts[:1], 20)
    map_after_refusals = _maps(engine)

    other = place / "other.json"
    reversed_table = plan.placement.physical_to_logical[:, ::-1]
    write_plan(other, Plan(replace(plan.placement, physical_to_logical=reversed_table)))
    assert engine.call("placer_offer", 0, 99, str(other)) == ["", ""]
    engine.generate(prompts[:1], 40)
    map_after_disagreement = _maps(engine)

    pids = engine.call("placer_pid")
    engine.begin(prompts, TOKENS)
    time.sleep(5.5)  # about when the next push is due
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return Story(
        prompts, undisturbed, recorded, trace, plan, map_before, applied, disturbed, map_after,
        statuses, afterwards, rank_loads, refusals, map_after_refusals, map_after_disagreement,
        [read_profile(path) for path in folder.profiles(agents)],
    )  # fmt: skip


def real_prompts() -> list[list[int]]:
    """The beginnings of held-out texts of all three domains."""
    prompts = []
    for path in sorted(TRACES.glob("*.npz")):
        trace = read_trace(path, MODEL)
        assert trace.token_ids is not None
        starts = np.cumsum(trace.seq_lens) - trace.seq_lens
        prompts += [trace.token_ids[start : start + PROMPT].tolist() for start in starts[::20]]
    return prompts[:STREAMS]


def _bad_plans(plan: Plan) -> dict[str, str]:
    good = plan.placement

    def written(placement: Placement) -> str:
        spec = {
            "gpus": placement.gpus,
            "experts": placement.experts,
            "physical_to_logical": placement.physical_to_logical.tolist(),
        }
        return json.dumps({"format": "placer.plan", "version": 1, "placement": spec})

    without = np.where(good.physical_to_logical == 3, 4, good.physical_to_logical)
    return {
        "corrupted": written(good)[:-40],
        "foreign": written(Placement(np.tile(np.arange(8), (32, 1)), 8, 2)),
        "wider": written(replace(good, gpus=4)),
        "incomplete": written(replace(good, physical_to_logical=without)),
    }


def _maps(engine: Engine) -> list[np.ndarray]:
    return [np.array(table) for table in engine.call("placer_map")]


def _statuses(agents: Path) -> list[Status]:
    return folder.read_statuses(agents, time.time())


def _tokens(agents: Path) -> int:
    return sum(status.tokens for status in _statuses(agents))


def _until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until, "it did not happen within 30 s"
        time.sleep(0.2)


def _placer(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = _command(*arguments)
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "placer.cli.main", *map(str, arguments)]
