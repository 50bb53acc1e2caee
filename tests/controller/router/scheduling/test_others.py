"""What other fronts have sent to the ranks that this one chooses among."""

from controller.router.scheduling.pool import Engine
from controller.router.scheduling.scheduler import Scheduler
from tests.controller.router.scheduling.tiny_requests import SECOND_EACH, a_request


def chosen(scheduler: Scheduler, count: int) -> list[int]:
    return [scheduler.choose(a_request(1, 2, 3, most=5)).rank for _ in range(count)]


def test_requests_of_others_count_as_much_as_own_ones() -> None:
    """Four of them on rank 0, all alike: the next four go to rank 1, and then they alternate."""
    scheduler = Scheduler([Engine("e", 2)], SECOND_EACH, name="least_loaded")
    assert sorted(chosen(scheduler, 2)) == [0, 1]
    scheduler.hear({("e", 0): 4.0})
    assert chosen(scheduler, 4) == [1, 1, 1, 1]
    assert sorted(chosen(scheduler, 2)) == [0, 1]


def test_what_is_heard_takes_the_place_of_what_was_heard_before() -> None:
    scheduler = Scheduler([Engine("e", 2)], SECOND_EACH, name="least_loaded")
    scheduler.hear({("e", 0): 4.0})
    scheduler.hear({("e", 0): 4.0, ("gone", 3): 9.0})
    scheduler.hear({})
    assert scheduler.pool.ranks.backlog.tolist() == [0, 0]


def test_it_stays_with_its_rank_when_others_come_and_go() -> None:
    scheduler = Scheduler([Engine("a", 1), Engine("b", 1)], SECOND_EACH, name="least_loaded")
    scheduler.hear({("b", 0): 2.0})
    scheduler.see([Engine("b", 1), Engine("c", 2)])
    assert scheduler.pool.ranks.backlog.tolist() == [2, 0, 0]
    scheduler.hear({("c", 1): 1.0})
    assert scheduler.pool.ranks.backlog.tolist() == [0, 0, 1]


def test_a_pool_may_be_empty_at_first() -> None:
    scheduler = Scheduler([], SECOND_EACH, name="least_loaded")
    scheduler.hear({})
    scheduler.see([Engine("e", 2)])
    assert chosen(scheduler, 1) == [0]
