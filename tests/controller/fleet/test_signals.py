"""Counters of engines, added up and differenced."""

from dataclasses import replace
from typing import Any

import pytest

from controller.fleet.signals import Signals, SignalWindow
from controller.samples import Histogram, Sample, SampleError, expose, parse

# As vLLM 0.32 answers, shortened: two models behind one address.
TEXT = """\
# HELP python_gc_objects_collected_total Objects collected during gc
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 9.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="1",model_name="m"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 700.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 300.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7e+09
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 40.0
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 4.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 1.0
# HELP vllm:request_prompt_tokens Number of prefill tokens processed.
# TYPE vllm:request_prompt_tokens histogram
vllm:request_prompt_tokens_bucket{engine="0",le="100.0",model_name="m"} 2.0
vllm:request_prompt_tokens_bucket{engine="0",le="+Inf",model_name="m"} 5.0
vllm:request_prompt_tokens_count{engine="0",model_name="m"} 5.0
vllm:request_prompt_tokens_sum{engine="0",model_name="m"} 600.0
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 2.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5",model_name="m"} 5.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 6.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.1",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="0.5",model_name="m"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="1",le="+Inf",model_name="m"} 1.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 6.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="m"} 1.9
# HELP vllm:inter_token_latency_seconds Histogram of inter-token latency in seconds.
# TYPE vllm:inter_token_latency_seconds histogram
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.05",model_name="m"} 30.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="+Inf",model_name="m"} 34.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 34.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 1.2
"""
READ = Sample(
    ttft=Histogram((0.1, 0.5), (3.0, 3.0, 1.0)), gaps=Histogram((0.05,), (30.0, 4.0)), running=4.0,
    waiting=2.0, kv_use=0.5, finished=5.0, finished_prompt_tokens=600.0, prompt_tokens=1000.0,
    output_tokens=40.0,
)  # fmt: skip


def test_what_vllm_says_is_read() -> None:
    assert parse(TEXT) == READ


def test_former_names_are_read() -> None:
    text = TEXT.replace("kv_cache_usage", "gpu_cache_usage")
    assert parse(text.replace("inter_token_latency", "time_per_output_token")) == READ


def test_what_is_written_is_read_again() -> None:
    assert parse(expose(READ)) == READ


@pytest.mark.parametrize(
    ("text", "why"),
    [("<html>", "these are no metrics"), ("", "no vllm:num_requests_running among"),
     (TEXT.replace("waiting{engine=\"0\",model_name=\"m\"} 2.0", "waiting -1"), "-1"),
     (TEXT.replace("} 2.0", "} NaN"), "is nan"),
     (TEXT.replace('le="+Inf",model_name="m"} 34.0', 'le="+Inf",model_name="m"} 1.0'), "add up")],
)  # fmt: skip
def test_what_is_no_engines_metrics_is_refused(text: str, why: str) -> None:
    with pytest.raises(SampleError, match=why):
        parse(text)


def test_a_share_inside_a_bucket_is_as_if_it_were_even() -> None:
    histogram = Histogram((1.0, 3.0), (4.0, 4.0, 2.0))
    assert [histogram.within(bound) for bound in (0.5, 1.0, 2.0, 3.0, 9.0)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 0.8]
    )
    assert Histogram((1.0,), (0.0, 0.0)).within(0.5) == 1.0


def a_sample(done: float, waiting: float = 0.0, **more: Any) -> Sample:
    """``done`` requests of 10 tokens."""
    return Sample(
        ttft=Histogram((1.0,), (done, 0.0)), waiting=waiting, finished=done,
        finished_prompt_tokens=10 * done, prompt_tokens=10 * done, **more,
    )  # fmt: skip


def read(*samples: dict[str, Sample], window_s: float = 100.0) -> tuple[SignalWindow, Signals]:
    """Each a second after the one before."""
    window = SignalWindow(window_s, tpot_s=0.1)
    for second, sample in enumerate(samples):
        window.add(float(second), 2, sample)
    assert window.signals is not None
    return window, window.signals


def test_engines_add_up_from_when_they_are_known() -> None:
    _, signals = read(
        {"a": a_sample(100)},
        {"a": a_sample(103, waiting=2), "b": a_sample(50, running=1.0)},
        {"a": a_sample(105), "b": a_sample(51)},
    )
    assert signals.now.sums.finished == 3 + 2 + 1
    assert signals.now.arrived == 3 + 2 + 0 + 0  # two that waited, and one that ran, are done
    assert signals.arrivals(2.0, 1.0) == [5.0, 0.0]
    assert signals.prompt_length == 10


def test_counters_that_begin_anew_lose_nothing_that_came_since() -> None:
    """As all of vLLM's do when it grows."""
    _, signals = read({"a": a_sample(100)}, {"a": a_sample(104)}, {"a": a_sample(3)})
    assert (signals.now.sums.finished, signals.now.sums.ttft.counts[0]) == (7, 7)
    assert signals.now.arrived == 7


def test_an_engine_that_does_not_answer_says_more_the_next_time() -> None:
    _, signals = read(
        {"a": a_sample(1), "b": a_sample(1, waiting=4)}, {"a": a_sample(2)},
        {"a": a_sample(3), "b": a_sample(5)},
    )  # fmt: skip
    assert [one.sums.waiting for one in signals.readings] == [4, 4, 0]
    assert signals.now.sums.finished == 6


def test_full_speed_is_the_most_that_was_shown_until_requests_wait_for_less() -> None:
    window, _ = read({"a": a_sample(0)}, {"a": a_sample(20)}, {"a": a_sample(24)})
    assert window.full_rate == 100  # 200 tokens on 2 ranks
    window, _ = read(
        {"a": a_sample(0)}, {"a": a_sample(20, waiting=1)}, {"a": a_sample(24, waiting=1)}
    )
    assert window.full_rate == 100 - 0.1 * (100 - 20)


def test_who_waits_for_the_step_that_runs_says_nothing_of_full_speed() -> None:
    """Of 39 a second, 3.9 come while a step of 0.1 s runs: where more wait, some wait longer."""
    for waiting, full_rate in ((3, 200.0), (4, 200 - 0.1 * (200 - 195))):
        window, _ = read(
            {"a": a_sample(0)}, {"a": a_sample(40, waiting)}, {"a": a_sample(79, waiting)}
        )
        assert window.full_rate == pytest.approx(full_rate)


@pytest.mark.parametrize(
    ("ttft_s", "gap_s", "full_rate"),
    [(0.05, 0.0, 100.0), (0.0375, 0.0, 100 / 0.75), (0.0, 0.08, 100 / 0.8),
     (0.025, 0.08, 100 / 0.8), (0.001, 0.01, 400.0)],
)  # fmt: skip
def test_ranks_that_were_busy_in_part_are_believed_to_compute_more(
    ttft_s: float, gap_s: float, full_rate: float
) -> None:
    """20 requests of 10 tokens in a second on 2 ranks are 100 tokens/s a rank. 50 ms to each first
    token are one prompt at work all the time; 0.1 s between tokens are as long as they may be."""

    def after(done: float) -> Sample:
        """Buckets whose middles are these."""
        first = Histogram((2 * ttft_s,) if ttft_s else (), (done, 0.0) if ttft_s else (0.0,))
        gaps = Histogram((2 * gap_s,) if gap_s else (), (done, 0.0) if gap_s else (0.0,))
        return replace(a_sample(done), ttft=first, gaps=gaps)

    window, _ = read({"a": after(0)}, {"a": after(20)})
    assert window.full_rate == pytest.approx(full_rate)


def test_tokens_that_come_too_slowly_show_full_speed_too() -> None:
    slow = Histogram((0.3,), (50.0, 0.0))  # 0.15 s, of 0.1
    first = replace(a_sample(20), gaps=Histogram((0.3,), (0.0, 0.0)))
    window, _ = read({"a": a_sample(0)}, {"a": first}, {"a": replace(a_sample(24), gaps=slow)})
    assert window.full_rate == pytest.approx(100 - 0.1 * (100 - 20))


def test_what_is_kept_is_bounded() -> None:
    samples = [{"a": a_sample(second)} for second in range(50)]
    _, signals = read(*samples, window_s=9.0)
    assert len(signals.readings) == 10
    assert (signals.before(4.0).at_s, signals.before(99.0).at_s) == (45, 40)


def test_a_mean_is_of_the_middles_of_buckets() -> None:
    assert Histogram((1.0, 3.0), (4.0, 4.0, 2.0)).mean == (4 * 0.5 + 4 * 2 + 2 * 3) / 10
    assert Histogram().mean == 0


def test_the_smaller_of_both_shares_is_attained() -> None:
    late = Histogram((0.1, 0.2), (3.0, 1.0, 0.0))
    first = replace(a_sample(10), gaps=Histogram((0.1, 0.2), (0.0, 0.0, 0.0)))
    _, signals = read({"a": first}, {"a": replace(a_sample(14), gaps=late)})
    assert signals.attainment(1.0, 0.1, 9.0) == 0.75
