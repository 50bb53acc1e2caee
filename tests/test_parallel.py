"""Wherever a sweep runs, it comes to the same."""

import sys

import pytest

from placer.errors import PlacerError
from placer.objective import Objective
from placer.parallel import cores, ray_cluster
from placer.profile import of_trace
from placer.whatif import Case, Evaluate, Study
from tests.builders import a_model, by_hand, random_trace

TRACE = random_trace(0, tokens=200)
STUDY = Study(a_model(top_k=2), of_trace(TRACE), Objective(tokens_per_gpu=8), holdout=TRACE)
# One of them has no answer, since 5 slots do not divide by 2 GPUs.
CASES = [Case(by_hand(gpus), slots, "dedup") for gpus, slots in ((4, 0), (2, 4), (2, 1), (2, 0))]


def need_ray() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'moe-placer[ray]'")


def test_cores_come_to_what_one_process_comes_to_in_the_same_order() -> None:
    with cores() as over:
        found = list(over(Evaluate(STUDY), CASES))
    assert found == list(map(Evaluate(STUDY), CASES))
    assert [bool(outcome.problem) for outcome in found] == [False, False, True, False]


@pytest.mark.xdist_group("ray")
@pytest.mark.slow
def test_a_ray_cluster_comes_to_what_cores_come_to() -> None:
    need_ray()
    with cores() as over:
        on_cores = list(over(Evaluate(STUDY), CASES))
    with ray_cluster("local") as over:
        assert list(over(Evaluate(STUDY), CASES)) == on_cores


@pytest.mark.xdist_group("ray")
@pytest.mark.slow
def test_an_address_that_is_none_is_named() -> None:
    need_ray()
    with pytest.raises(PlacerError, match=r"no Ray cluster at 'nowhere' .*: check --ray"):
        ray_cluster("nowhere").__enter__()


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(PlacerError, match=r"this needs Ray: pip install 'moe-placer\[ray\]'"):
        ray_cluster("local").__enter__()
