"""Counting on the device, against counting every token by itself."""

import time
from dataclasses import dataclass, field

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-vllm installs it")

from placer.agent.recording import Counts
from placer.agent.sampling import ALL, Sampling
from placer.agent.vllm.counters import STAGED, Counters
from placer.agent.vllm.recorder import Batch, StepRecorder
from placer.clock import SystemClock
from placer.profile import merge, of_trace
from placer.trace import Trace
from tests.agent.workers import assert_drawn
from tests.builders import random_trace

LAYERS, EXPERTS, TOP_K = 3, 8, 2
NO_ONE = np.zeros(0, dtype=np.int64)


@dataclass
class Request:
    """What is left to do of it, and what was done."""

    prompt: int
    total: int
    expert_ids: list[np.ndarray] = field(default_factory=list)
    token_ids: list[np.ndarray] = field(default_factory=list)

    @property
    def done(self) -> int:
        return sum(map(len, self.token_ids))


@dataclass
class World:
    """An engine of 6 slots whose router draws lots; padding follows every batch."""

    recorder: StepRecorder
    requests: dict[str, Request]
    rng: np.random.Generator
    chunk: int = 5  # prompt tokens a step

    def run(self) -> None:
        waiting, running = list(self.requests), list[str]()
        finished: set[str] = set()
        while waiting or running or finished:
            new = waiting[: 6 - len(running)]
            waiting, running = waiting[len(new) :], running + new
            self._step(running, new, finished)
            finished = {n for n in running if self.requests[n].done >= self.requests[n].total}
            running = [name for name in running if name not in finished]

    def _step(self, running: list[str], new: list[str], finished: set[str]) -> None:
        chosen = [self.requests[name] for name in running]
        sizes = [
            min(self.chunk, one.prompt - one.done) if one.done < one.prompt else 1 for one in chosen
        ]
        draw = self.rng.random((sum(sizes) + 2, LAYERS, EXPERTS)).argsort(axis=2)
        expert_ids, token_ids = draw[:, :, :TOP_K], self.rng.integers(0, 99, sum(sizes) + 2)
        for layer in range(LAYERS):
            self.recorder.counters.capture(layer, torch.from_numpy(expert_ids[:, layer].copy()))
        positions = np.array([one.done for one in chosen], dtype=np.int64)
        prompts = np.array([one.prompt for one in chosen], dtype=np.int64)
        batch = Batch(
            list(running), dict(zip(running, sizes, strict=True)), sum(sizes), positions, prompts,
            torch.from_numpy(token_ids), new, finished,
        )  # fmt: skip
        self.recorder.observe(batch, time.monotonic())
        first = 0
        for one, size in zip(chosen, sizes, strict=True):
            one.expert_ids.append(expert_ids[first : first + size])
            one.token_ids.append(token_ids[first : first + size])
            first += size


def a_world(seed: int, requests: int, longest: int, chunk: int = 5) -> World:
    rng = np.random.default_rng(seed)
    counters = Counters(LAYERS, EXPERTS, TOP_K, 6 * max(chunk, 5) + 2, torch.device("cpu"))
    made = {
        f"r{at}": Request(prompt, prompt + int(rng.integers(1, longest)))
        for at, prompt in enumerate(rng.integers(1, longest, requests).tolist())
    }
    recorder = StepRecorder(counters, SystemClock())
    recorder.sample(ALL)
    return World(recorder, made, rng, chunk)


def true_trace(world: World, phase: str | None = None) -> Trace:
    """All requests, or the tokens of each that are in one phase."""
    parts = [np.concatenate(one.expert_ids) for one in world.requests.values()]
    prompts = [one.prompt for one in world.requests.values()]
    if phase == "prefill":
        parts = [part[:prompt] for part, prompt in zip(parts, prompts, strict=True)]
    if phase == "decode":
        parts = [part[prompt:] for part, prompt in zip(parts, prompts, strict=True)]
    lens = np.array([len(part) for part in parts if len(part)])
    return Trace(np.concatenate(parts), lens, EXPERTS)


@pytest.mark.parametrize(
    ("requests", "longest", "chunk"), [(40, 30, 5), (300, 40, 5), (9, 3000, 999)]
)
def test_counts_equal_counting_every_token_in_its_phase(
    requests: int, longest: int, chunk: int
) -> None:
    world = a_world(requests, requests, longest, chunk)
    world.run()
    profiles = {profile.phase: profile for profile in world.recorder.take().profiles()}
    for phase, counted in profiles.items():
        true = of_trace(true_trace(world, phase))
        assert (counted.tokens, counted.top_k) == (true.tokens, TOP_K)
        np.testing.assert_array_equal(counted.load, true.load)
        assert counted.transitions is not None
        assert_drawn(counted.transitions, true)
        np.testing.assert_array_equal(counted.coactivation, true.coactivation)
    assert profiles["prefill"].sequences == requests
    assert sum(profile.tokens for profile in profiles.values()) > STAGED or requests == 40


def counted(trace: Trace, folds: int) -> Counts:
    """``trace``, of STAGED tokens, counted again and again in the same places."""
    counters = Counters(trace.layers, trace.experts, trace.top_k, 1, torch.device("cpu"))
    counters.staged.copy_(torch.from_numpy(trace.expert_ids.transpose(1, 0, 2).copy()))
    for _ in range(folds):
        counters.fold(np.zeros(STAGED, dtype=bool))
    return counters.take()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_mean_transition_is_that_of_all_pairs(top_k: int) -> None:
    """Every token's experts ascend, and 64 requests take their places in turn, as they do in
    decoding: no column and no place may stand for another."""
    folds = 200
    ids = np.tile(random_trace(0, 64, 3, 5, top_k).expert_ids, (STAGED // 64, 1, 1))
    trace = Trace(ids, np.array([STAGED]), experts=5)
    exact = of_trace(trace).transitions
    assert exact is not None
    error = (folds * exact * (1 - 1 / top_k**2)) ** 0.5
    found = counted(trace, folds).transitions[0]
    assert (abs(found - folds * exact) <= 3 * error).all()
    assert (found.sum(axis=(1, 2)) == folds * STAGED).all()


def test_counts_do_not_depend_on_the_order_of_a_tokens_experts() -> None:
    ids = random_trace(0, STAGED, 3, 6, 3).expert_ids
    one = counted(Trace(ids, np.array([STAGED]), 6), 1)
    other = Counters(3, 6, 3, 1, torch.device("cpu"))
    shuffled = np.random.default_rng(0).permuted(ids, axis=2)
    other.staged.copy_(torch.from_numpy(shuffled.transpose(1, 0, 2).copy()))
    other.fold(np.zeros(STAGED, dtype=bool))
    np.testing.assert_array_equal(one.coactivation, other.take().coactivation)


def test_ids_that_are_no_experts_are_not_counted() -> None:
    counters = Counters(2, 4, 2, 8, torch.device("cpu"))
    for layer, chosen in enumerate(([[0, 1], [4, 2], [-1, 3]], [[1, 0], [2, 3], [3, 2]])):
        counters.capture(layer, torch.tensor(chosen))
    transitions = np.zeros((4, 4), dtype=int)
    for _ in range(100):
        counters.stage(0, 3, 0)
        counters.fold(np.zeros(3, dtype=bool))
        counts = counters.take()
        assert counts.load[0].tolist() == [[1, 1, 1, 1], [1, 1, 2, 2]]
        transitions += counts.transitions[0, 0]
    possible = np.zeros((4, 4), dtype=bool)
    possible[[0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 0, 1, 2, 3, 2, 3]] = True
    assert (transitions.astype(bool) == possible).all()
    assert transitions.sum() < 250  # half of two tokens' are nobody's: 100 + 50 + 50


def test_what_is_taken_in_parts_adds_up() -> None:
    world = a_world(3, 200, 30)
    half = len(world.requests) // 2
    everything, parts = dict(world.requests), []
    for names in (list(everything)[:half], list(everything)[half:]):
        world.requests = {name: everything[name] for name in names}
        world.run()
        parts += world.recorder.take().profiles()
    world.requests = everything
    np.testing.assert_array_equal(merge(parts).load, of_trace(true_trace(world)).load)


def test_sampled_requests_are_kept_token_by_token() -> None:
    world = a_world(5, 50, 30)
    world.run()
    trace = world.recorder.take().trace()
    assert trace is not None
    assert trace.token_ids is not None
    got = np.split(trace.token_ids, np.cumsum(trace.seq_lens)[:-1])
    want = [np.concatenate(one.token_ids) for one in world.requests.values()]
    assert sorted(part.tolist() for part in got) == sorted(part.tolist() for part in want)
    np.testing.assert_array_equal(of_trace(trace).load, of_trace(true_trace(world)).load)


def test_a_request_tells_which_tokens_are_of_its_prompt_and_no_ids_that_nobody_asked_for() -> None:
    world = a_world(5, 50, 30)
    world.recorder.sample(Sampling(0.0, token_ids=False))
    world.run()
    sampled = world.recorder.take().sequences
    want = sorted((one.total, one.prompt) for one in world.requests.values())
    assert sorted((len(one.expert_ids), one.prompt) for one in sampled) == want
    assert all(one.token_ids is None for one in sampled)


def test_a_step_without_tokens_may_be_all_that_there_was() -> None:
    recorder = StepRecorder(Counters(LAYERS, EXPERTS, TOP_K, 8, torch.device("cpu")), SystemClock())
    recorder.observe(Batch([], {}, 0, NO_ONE, NO_ONE, torch.zeros(0), (), ["r"]), 0.0)
    assert recorder.take().profiles() == []


def test_a_request_that_begins_again_after_preemption_leaves_no_broken_trace() -> None:
    counters = Counters(LAYERS, EXPERTS, TOP_K, 8, torch.device("cpu"))
    recorder = StepRecorder(counters, SystemClock())
    recorder.sample(ALL)
    for position in (0, 1, 0, 1, 2):  # preempted after two tokens
        new = ["r"] if recorder.take().counts.tokens.sum() == 0 and position == 0 else []
        token_ids = torch.zeros(1, dtype=torch.int64)
        recorder.observe(
            Batch(["r"], {"r": 1}, 1, np.array([position]), np.array([9]), token_ids, new, ()), 0.0
        )
    recorder.observe(Batch([], {}, 0, NO_ONE, NO_ONE, torch.zeros(0), (), ["r"]), 0.0)
    assert recorder.take().trace() is None


def test_an_idle_recorder_gives_the_rest_to_another_thread_and_then_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = a_world(7, 4, 10)
    world.run()
    assert world.recorder.take_idle() is None  # a step has only just run
    monkeypatch.setattr("placer.agent.vllm.recorder.IDLE_S", 0.0)
    rest = world.recorder.take_idle()
    assert rest is not None
    assert rest.counts.tokens.sum() == sum(one.total for one in world.requests.values())
    assert world.recorder.take_idle() is None


def test_steps_are_timed_by_phase_on_the_clock_that_the_engine_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A prompt of 2 tokens in a step of 30 ms, then decoding steps 10 ms apart, and 1 s of rest."""
    ended_s = iter([100.025, 100.035, 100.045, 101.055])
    counters = Counters(LAYERS, EXPERTS, TOP_K, 4, torch.device("cpu"))
    for layer in range(LAYERS):
        counters.capture(layer, torch.arange(TOP_K).repeat(4, 1))
    clock = SystemClock()
    recorder = StepRecorder(counters, clock)
    monkeypatch.setattr(clock, "monotonic", lambda: next(ended_s))
    for begun_s, position, size in ((100.0, 0, 2), (100.03, 2, 1), (100.04, 3, 1)):
        batch = Batch(
            ["r"], {"r": size}, size, np.array([position]), np.array([2]), torch.zeros(4), (), ()
        )
        recorder.observe(batch, begun_s)
    recorder.observe(Batch([], {}, 0, NO_ONE, NO_ONE, torch.zeros(0), (), ["r"]), 101.05)
    monkeypatch.setattr(clock, "monotonic", lambda: 102.0)
    profiles = {one.phase: one for one in recorder.take().profiles()}
    prefill, decode = profiles["prefill"].pace, profiles["decode"].pace
    assert prefill is not None
    assert decode is not None
    assert (prefill.steps, decode.steps) == (1, 2)
    assert (prefill.window_s, decode.window_s) == (2.0, 2.0)
    # The last lasts until its own end.
    assert prefill.busy_s == pytest.approx(0.03)
    assert decode.busy_s == pytest.approx(0.015)


def test_time_in_which_no_step_is_seen_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps are seen, of 10 ms each, half a second apart, and one in between is not."""
    now_s = [100.0]
    clock = SystemClock()
    monkeypatch.setattr(clock, "monotonic", lambda: now_s[0])
    counters = Counters(LAYERS, EXPERTS, TOP_K, 4, torch.device("cpu"))
    recorder = StepRecorder(counters, clock)

    def step(begun_s: float, position: int, is_seen: bool = True) -> None:
        for layer in range(LAYERS):
            counters.capture(layer, torch.arange(TOP_K).repeat(4, 1))
        now_s[0] = begun_s + 0.01
        new = ["r"] if position == 0 else []
        batch = Batch(
            ["r"], {"r": 1}, 1, np.array([position]), np.array([0]), torch.zeros(4), new, ()
        )
        (recorder.observe if is_seen else recorder.skip)(batch, begun_s)

    step(100.0, 0)
    step(100.01, 1, is_seen=False)
    step(100.51, 2)
    recorder.observe(Batch([], {}, 0, NO_ONE, NO_ONE, torch.zeros(0), (), ["r"]), 100.52)
    now_s[0] = 100.52
    recording = recorder.take()
    (profile,) = recording.profiles()
    assert profile.tokens == 2
    assert recording.window_s == pytest.approx(0.02)
    assert profile.pace is not None
    assert profile.pace.steps == 2
    assert profile.pace.busy_s == pytest.approx(0.02)
    assert recording.trace() is None  # a token of it is missing


def test_a_window_may_end_while_no_step_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    clock = SystemClock()
    monkeypatch.setattr(clock, "monotonic", lambda: now_s[0])
    recorder = StepRecorder(Counters(LAYERS, EXPERTS, TOP_K, 4, torch.device("cpu")), clock)
    empty = Batch([], {}, 0, NO_ONE, NO_ONE, torch.zeros(0), (), ())
    recorder.observe(empty, 100.0)
    recorder.skip(empty, 101.0)
    now_s[0] = 104.0
    assert recorder.take().window_s == pytest.approx(1.0)
    recorder.observe(empty, 106.0)
    now_s[0] = 107.0
    assert recorder.take().window_s == pytest.approx(1.0)
