"""How many requests each rank of an engine has, by its metrics."""

from controller.samples import Sample, expose, present_by_rank, ranks_of

TEXT = b"""# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="4",model_name="m"} 3.0
vllm:num_requests_running{model_name="a, engine=9", engine="5"} 0.0
vllm:num_requests_waiting{engine="4",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="6",reason="capacity"} 9.0
other:num_requests_running{engine="7"} 1.0
"""


def test_running_and_waiting_ones_add_up_by_rank() -> None:
    assert present_by_rank(TEXT) == {4: 5.0, 5: 0.0}
    assert ranks_of(TEXT) == (4, 5)


def test_metrics_that_tell_no_rank_tell_of_none() -> None:
    assert present_by_rank(expose(Sample(running=3.0)).encode()) == {}
    assert ranks_of(b"\xff\x00 garbage {") == ()
