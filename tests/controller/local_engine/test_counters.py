"""What was counted is what a plain reading of the model routes."""

from functools import cache

import numpy as np

from controller.local_engine.local_engine import LocalEngine
from controller.samples import expose, parse
from placer.agent.recording import Recording
from placer.agent.sampling import ALL
from placer.arrays import IntArray
from placer.marks import Mark
from placer.profile import of_trace
from placer.trace import Trace
from tests.agent.workers import assert_drawn
from tests.controller.local_engine.plain import Plain
from tests.controller.local_engine.tiny_engine import (
    EXPERTS,
    LAYERS,
    MODEL,
    PROMPTS,
    TOP_K,
    generate,
    kill,
)

TOKENS = 30


@cache
def recorded(kills: int) -> tuple[list[list[int]], Recording]:
    """Prompts with what was generated, of two ranks; ranks are killed meanwhile."""
    prompts = PROMPTS[:5]
    with LocalEngine(MODEL, 2, 20) as engine:
        engine.sample_requests(ALL)
        requests = [engine.submit(prompt, TOKENS) for prompt in prompts]
        for at, _ in enumerate(requests[0]):
            if at < 3 * kills and at % 3 == 0:
                kill(engine.pids()[at % 2])
        outputs = [request.tokens() for request in requests]
        assert engine.status.restarts >= kills
        return [[*a, *b] for a, b in zip(prompts, outputs, strict=True)], engine.record()


@cache
def routed() -> list[tuple[int, IntArray]]:
    """Of each request: tokens of its prompt, and [tokens, layers, top_k]; the last token that is
    generated is never routed."""
    sequences, _ = recorded(0)
    plain = Plain()
    return [(len(one) - TOKENS, plain.routing(one[:-1])[0]) for one in sequences]


def recount(recording: Recording) -> None:
    """Count again what the routers chose, token by token."""
    load = np.zeros((2, LAYERS, EXPERTS), dtype=int)
    coactivation = np.zeros((2, LAYERS, EXPERTS, EXPERTS), dtype=int)
    for prompt, experts in routed():
        for position, token in enumerate(experts.tolist()):
            phase = int(position >= prompt)
            for layer, chosen in enumerate(token):
                for one in chosen:
                    load[phase, layer, one] += 1
                    for other in chosen:
                        coactivation[phase, layer, one, other] += 1
    counts = recording.counts
    np.testing.assert_array_equal(counts.load, load)
    np.testing.assert_array_equal(counts.coactivation, coactivation)
    for phase in (0, 1):
        parts = [experts[prompt:] if phase else experts[:prompt] for prompt, experts in routed()]
        trace = Trace(np.concatenate(parts), np.array(list(map(len, parts))), EXPERTS)
        assert_drawn(counts.transitions[phase], of_trace(trace))
    decoded = [len(experts) - prompt for prompt, experts in routed()]
    assert counts.tokens.tolist() == [sum(prompt for prompt, _ in routed()), sum(decoded)]


def test_counts_are_those_of_a_plain_forward_pass() -> None:
    _, recording = recorded(0)
    recount(recording)
    tokens = recording.counts.tokens
    assert (recording.counts.load.sum(axis=2) == TOP_K * tokens[:, None]).all()
    assert recording.requests.tolist() == [5, 5]
    assert recording.window_s > 0
    prefill, decode = (recording.paces[phase] for phase in ("prefill", "decode"))
    # Each of an answer's tokens comes from another step.
    assert TOKENS <= prefill.steps + decode.steps <= tokens.sum()
    assert 0 < prefill.busy_s + decode.busy_s <= recording.window_s


def test_a_step_that_is_made_again_is_counted_once() -> None:
    sequences, recording = recorded(3)
    assert sequences == recorded(0)[0]
    recount(recording)


def test_whole_requests_are_kept_token_by_token() -> None:
    sequences, recording = recorded(0)
    kept = {
        bytes(one.token_ids.tolist()): one.expert_ids
        for one in recording.sequences
        if one.token_ids is not None
    }
    assert len(kept) == 5
    for sequence, (_, experts) in zip(sequences, routed(), strict=True):
        np.testing.assert_array_equal(kept[bytes(sequence[:-1])], experts)


def test_a_recording_becomes_profiles_and_a_trace() -> None:
    _, recording = recorded(0)
    prefill, decode = recording.profiles()
    assert (prefill.phase, prefill.top_k, decode.phase, decode.sequences) == (
        "prefill",
        TOP_K,
        "decode",
        5,
    )
    trace = recording.trace()
    assert trace is not None
    assert trace.experts == EXPERTS


def test_a_sampled_request_tells_where_its_prompt_ends() -> None:
    _, recording = recorded(0)
    found = sorted((one.prompt, len(one.expert_ids)) for one in recording.sequences)
    assert found == sorted((len(prompt), len(prompt) + TOKENS - 1) for prompt in PROMPTS[:5])


def test_a_sampled_request_tells_its_rank_and_its_mark() -> None:
    with LocalEngine(MODEL, 2) as engine:
        engine.sample_requests(ALL)
        engine.submit(b"import os", 3, "mine-placert", rank=1).tokens()
        engine.submit(b"import os", 3, rank=0).tokens()
        found = [(one.rank, one.mark) for one in engine.record().sequences]
    assert found == [(1, Mark.TABLES), (0, Mark.NONE)]


def test_each_recording_begins_anew() -> None:
    with LocalEngine(MODEL, 1) as engine:
        generate(engine, [b"import os"], 5)
        first, second = engine.record(), engine.record()
    assert first.counts.tokens.tolist() == [9, 4]
    assert second.counts.tokens.tolist() == [0, 0]
    assert not second.counts.load.any()
    assert not second.sequences


def test_its_metrics_say_what_it_computed() -> None:
    """The last token of each request is its last gap; nobody waits any more."""
    prompts = PROMPTS[:5]
    with LocalEngine(MODEL, 2, 20) as engine:
        assert engine.sample.prompt_tokens == 0
        generate(engine, prompts, TOKENS)
        sample = engine.sample
    tokens = sum(map(len, prompts))
    assert (sample.prompt_tokens, sample.finished_prompt_tokens) == (tokens, tokens)
    assert (sample.finished, sample.output_tokens) == (5, 5 * TOKENS)
    assert (sample.ttft.total, sample.gaps.total) == (5, 5 * (TOKENS - 1))
    assert (sample.running, sample.waiting, sample.kv_use) == (0, 0, 0)
    assert parse(expose(sample)) == sample
