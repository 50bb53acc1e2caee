from simulations.streams.at_home import made_for_lar
from tests.builders import a_problem, a_trace


def test_requests_that_use_the_same_experts_get_a_gpu_of_their_own() -> None:
    """Two kinds of requests: one uses experts 0 and 3 in the first layer and 1 and 2 in the second,
    the other the others. So each GPU holds what one of them uses."""
    ours, theirs = [[0, 3], [1, 2]], [[1, 2], [0, 3]]
    trace = a_trace([*[ours] * 2, *[theirs] * 2] * 2, seq_lens=[2] * 4)
    found = made_for_lar(a_problem(trace)).copies[:, :, 0]
    assert found.tolist() in ([[1, 0, 0, 1], [0, 1, 1, 0]], [[0, 1, 1, 0], [1, 0, 0, 1]])
