import pytest

from controller.fleet import workers as fleet_module
from controller.fleet.pools import Registration, WorkerId
from controller.fleet.workers import FORGOTTEN_S, Fleet, FleetError, UnknownError
from placer.errors import RoutingError
from placer.pace import Pace
from placer.virtual_clock import VirtualClock
from placer.worker import GONE_S
from tests.builders import a_model
from tests.controller.tiny_pool import POOL, a_delta, a_registration, at, only

ROWS = [[4, 3, 2, 1], [1, 2, 3, 4]]
ID = WorkerId(POOL, "e0", "w0", 1)


def a_fleet(*registrations: Registration) -> Fleet:
    """That heard these at second 0; without any, one worker."""
    fleet = Fleet(lambda pool: 10.0, VirtualClock())
    for registration in registrations or (a_registration(),):
        at(fleet, 0.0).register(registration)
    return fleet


def lost(fleet: Fleet) -> int:
    return fleet.engine(POOL, "e0")[0].lost


def test_whoever_comes_first_defines_the_pool() -> None:
    group = only(a_fleet(a_registration(slots=6)).pool(POOL))
    assert (group.pool, group.model, group.ranks, group.slots) == (POOL, a_model(), 2, 6)


def test_a_worker_that_does_not_know_its_models_sizes_gives_its_name_and_counts() -> None:
    registration = a_registration(layers=3, model="org/Mixtral-9")
    model = a_fleet(registration).pool(POOL).model
    assert (model.name, model.layers, model.experts, model.sized) == ("Mixtral-9", 3, 4, False)


def test_engines_are_told_in_order_and_their_members_by_rank() -> None:
    fleet = a_fleet(
        a_registration("e1", "a", rank=1), a_registration("e0"), a_registration("e1", "b", rank=0)
    )
    workers = {
        name: [one.registration.id.worker for one in members]
        for name, members in fleet.pool(POOL).engines.items()
    }
    assert list(workers.items()) == [("e0", ["w0"]), ("e1", ["b", "a"])]


def test_who_is_not_there_is_named_with_those_who_are() -> None:
    fleet = a_fleet(a_registration(pool="chat"), a_registration(pool="code"))
    with pytest.raises(UnknownError, match="no pool 'x': there is chat, code"):
        fleet.pool("x")
    with pytest.raises(UnknownError, match="no engine 'e9' in chat: there is e0"):
        fleet.engine("chat", "e9")
    with pytest.raises(UnknownError, match="there is none yet: does PLACER_AGENT name"):
        Fleet(lambda pool: 10.0, VirtualClock()).pool("x")


def test_of_many_that_are_there_a_few_are_named() -> None:
    fleet = a_fleet(*(a_registration(f"e{at:03}") for at in range(1500)))
    with pytest.raises(UnknownError) as caught:
        fleet.engine(POOL, "e" * 5000)
    there = ", ".join(f"e{at:03}" for at in range(8))
    assert str(caught.value) == f"no engine {'e' * 200!r} in chat: there is {there} and 1,492 more"
    with pytest.raises(UnknownError) as caught:
        fleet.member(WorkerId("p" * 5000, "e" * 5000, "w" * 5000, 1))
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("registration", "differs"),
    [
        (a_registration("e1", layers=3), "3 layers x 4 experts, top-1, on 2 ranks in 4 slots"),
        (a_registration("e1", slots=6), "on 2 ranks in 6 slots"),
        (a_registration("e1", top_k=2, shape=a_model(top_k=2)), "top-2"),
    ],
)
def test_whoever_does_not_fit_is_refused_and_told_both_sides(
    registration: Registration, differs: str
) -> None:
    fleet = a_fleet()
    here = "pool chat has 2 layers x 4 experts, top-1, on 2 ranks in 4 slots and w0 of e1 "
    with pytest.raises(FleetError) as caught:
        at(fleet, GONE_S - 1).register(registration)
    assert str(caught.value).startswith(here)
    assert differs in str(caught.value)
    assert str(caught.value).endswith("give it another PLACER_POOL")
    assert list(fleet.pool(POOL).engines) == ["e0"]


def test_when_all_are_silent_the_pool_may_become_another() -> None:
    fleet = a_fleet()
    at(fleet, 0.0).push(ID, 1, [a_delta(ROWS)])
    at(fleet, GONE_S).register(a_registration("e1", slots=6))
    pool = fleet.pool(POOL)
    assert (pool.slots, list(pool.engines), pool.windows) == ({2: 6}, ["e1"], {})


def test_as_long_as_one_is_heard_it_stays() -> None:
    fleet = a_fleet(a_registration(), a_registration("e1"))
    at(fleet, 20.0).register(a_registration("e1"))
    with pytest.raises(FleetError, match="pool chat has"):
        at(fleet, GONE_S + 1).register(a_registration("e2", slots=6))


@pytest.mark.parametrize(
    ("registration", "why"),
    [
        (a_registration(pool=""), r"pool '': a name has 1 to 200 printable"),
        (a_registration("x" * 201), r"engine 'x{50}': a name has"),
        (a_registration(worker="a\nb"), r"worker 'a\\nb': a name has"),
        (a_registration(slots=3), r"3 slots on 2 ranks: they must divide"),
        (a_registration(slots=5), r"5 slots on 2 ranks: they must divide"),
        (a_registration(ep_size=0), r"4 slots on 0 ranks"),
    ],
)
def test_nonsense_defines_no_pool(registration: Registration, why: str) -> None:
    fleet = Fleet(lambda pool: 10.0, VirtualClock())
    with pytest.raises(FleetError, match=why):
        at(fleet, 0.0).register(registration)
    assert fleet.pools == {}


def test_there_is_no_place_for_more_workers_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "WORKERS", 2)
    fleet = a_fleet(a_registration(), a_registration(pool="code"))
    for registration in (a_registration("e1"), a_registration(pool="third")):
        with pytest.raises(FleetError, match="2 workers are registered: no place for more"):
            at(fleet, 1.0).register(registration)
    assert list(fleet.pools) == ["chat", "code"]
    at(fleet, 1.0).register(a_registration())  # who has a place keeps it


def test_registering_answers_with_the_newest_push_that_is_known() -> None:
    fleet = a_fleet()
    at(fleet, 1.0).push(ID, 1, [a_delta(ROWS)])
    assert at(fleet, 2.0).register(a_registration()) == 1


def test_a_worker_that_was_started_again_counts_from_1() -> None:
    fleet = a_fleet()
    at(fleet, 1.0).push(ID, 5, [a_delta(ROWS)])
    assert at(fleet, 2.0).register(a_registration(incarnation=2)) == 0
    at(fleet, 3.0).push(WorkerId(POOL, "e0", "w0", 2), 1, [a_delta(ROWS)])
    assert only(fleet.pool(POOL)).windows["decode"].tokens == 20
    with pytest.raises(FleetError, match="w0 of e0 was started again since"):
        at(fleet, 4.0).register(a_registration())
    with pytest.raises(UnknownError, match="must register first"):
        at(fleet, 4.0).push(ID, 6, [a_delta(ROWS)])


YEAR_NS = 365 * 86_400 * 10**9


@pytest.mark.parametrize("ahead", [YEAR_NS, 2**64 - 1])
def test_a_life_from_the_future_takes_no_workers_place(ahead: int) -> None:
    fleet = a_fleet()
    at(fleet, 1.0).push(ID, 1, [a_delta(ROWS)])
    why = r"w0 of e0 began [0-9,]+ s from now, as it says, and another of that name is heard: set"
    for now_s in (1.0, GONE_S):
        with pytest.raises(FleetError, match=why):
            at(fleet, now_s).register(a_registration(incarnation=ahead))
    assert at(fleet, GONE_S).register(a_registration()) == 1
    at(fleet, GONE_S).push(ID, 2, [a_delta(ROWS)])


def test_a_life_from_the_future_that_was_first_makes_room_for_one_of_today() -> None:
    fleet = a_fleet(a_registration(incarnation=YEAR_NS))
    at(fleet, 0.5).push(WorkerId(POOL, "e0", "w0", YEAR_NS), 7, [a_delta(ROWS)])
    assert at(fleet, 1.0).register(a_registration()) == 0
    at(fleet, 2.0).push(ID, 1, [a_delta(ROWS)])
    assert only(fleet.pool(POOL)).windows["decode"].tokens == 20


def test_of_two_lives_from_the_future_the_later_is_the_newer() -> None:
    """All clocks are ahead of the controller's."""
    fleet = a_fleet(a_registration(incarnation=YEAR_NS))
    at(fleet, 1.0).register(a_registration(incarnation=YEAR_NS + 1))
    with pytest.raises(FleetError, match="w0 of e0 was started again since"):
        at(fleet, 2.0).register(a_registration(incarnation=YEAR_NS))


@pytest.mark.parametrize(("known", "new"), [(2, 1), (1, YEAR_NS), (YEAR_NS + 1, YEAR_NS)])
def test_whoever_is_silent_makes_room_whatever_the_clocks_say(known: int, new: int) -> None:
    fleet = a_fleet(a_registration(incarnation=known))
    with pytest.raises(FleetError):
        at(fleet, GONE_S - 1).register(a_registration(incarnation=new))
    assert at(fleet, GONE_S).register(a_registration(incarnation=new)) == 0
    at(fleet, GONE_S).push(WorkerId(POOL, "e0", "w0", new), 1, [a_delta(ROWS)])


@pytest.mark.parametrize(
    "id",
    [
        WorkerId("code", "e0", "w0", 1),
        WorkerId(POOL, "e1", "w0", 1),
        WorkerId(POOL, "e0", "w1", 1),
    ],
)
def test_only_who_registered_may_push(id: WorkerId) -> None:
    with pytest.raises(
        UnknownError, match=f"{id.worker} of {id.engine} in {id.pool} must register"
    ):
        a_fleet().push(id, 1, [a_delta(ROWS)])


def test_a_push_that_comes_twice_or_too_late_is_counted_once() -> None:
    fleet = a_fleet()
    for sequence in (1, 2, 2, 1):
        at(fleet, 1.0).push(ID, sequence, [a_delta(ROWS)])
    assert (only(fleet.pool(POOL)).windows["decode"].tokens, lost(fleet)) == (20, 0)


def test_pushes_that_are_left_out_are_lost() -> None:
    fleet = a_fleet()
    for sequence in (1, 4, 5):
        at(fleet, 1.0).push(ID, sequence, [a_delta(ROWS)])
    assert (only(fleet.pool(POOL)).windows["decode"].tokens, lost(fleet)) == (30, 2)


def test_what_another_controller_acknowledged_is_not_lost() -> None:
    fleet = a_fleet()
    at(fleet, 1.0).push(ID, 57, [a_delta(ROWS)])
    assert lost(fleet) == 0


def test_of_a_push_all_is_counted_or_nothing() -> None:
    fleet = a_fleet()
    with pytest.raises(RoutingError, match="contradict themselves"):
        at(fleet, 1.0).push(ID, 1, [a_delta(ROWS), a_delta(ROWS, tokens=1)])
    assert only(fleet.pool(POOL)).profile("mixed", 1.0) is None
    with pytest.raises(RoutingError, match="push 0: they are counted from 1"):
        at(fleet, 1.0).push(ID, 0, [a_delta(ROWS)])
    assert at(fleet, 2.0).register(a_registration()) == 0


def test_phases_are_counted_apart_and_mixed_is_both() -> None:
    fleet = a_fleet()
    few = a_delta([[0, 0, 0, 2], [2, 0, 0, 0]], phase="prefill")
    at(fleet, 1.0).push(ID, 1, [a_delta(ROWS), few])
    pool = fleet.pool(POOL)
    found = {phase: only(pool).profile(phase, 3.0) for phase in ("prefill", "decode", "mixed")}
    assert {phase: one.tokens for phase, one in found.items() if one} == {
        "prefill": 2, "decode": 10, "mixed": 12,
    }  # fmt: skip
    mixed = found["mixed"]
    assert mixed is not None
    assert mixed.load.tolist() == [[4, 3, 2, 3], [3, 2, 3, 4]]
    assert (mixed.phase, mixed.window_s) == ("mixed", 2.0)


def test_the_pace_is_the_mean_of_workers_and_the_seconds_are_of_all_engines() -> None:
    """Two engines of 10 steps a second of 20 ms and of 40 ms; prompts take no time apart."""
    fleet = a_fleet(a_registration(), a_registration("e1"))
    for engine, step_s in (("e0", 0.02), ("e1", 0.04)):
        paces = {"decode": Pace(10, 10 * step_s, 1.0), "prefill": Pace(0, 0.0, 1.0)}
        at(fleet, 1.0).push(WorkerId(POOL, engine, "w0", 1), 1, [a_delta(ROWS)], paces)
    pool = fleet.pool(POOL)
    for phase in ("decode", "mixed"):
        profile = only(pool).profile(phase, 3.0)
        assert profile is not None
        assert profile.pace == only(pool).pace(phase) == Pace(20, 10 * 0.02 + 10 * 0.04, 2.0)
        assert profile.window_s == 2 * 2.0
    assert only(pool).profile("prefill", 3.0) is None


def test_a_push_that_comes_again_passes_no_steps() -> None:
    fleet = a_fleet()
    for _ in range(2):
        at(fleet, 1.0).push(ID, 1, [a_delta(ROWS)], {"decode": Pace(10, 1.0, 2.0)})
    assert only(fleet.pool(POOL)).pace("decode") == Pace(10, 1.0, 2.0)


def test_a_pools_traffic_is_forgotten_after_its_window() -> None:
    fleet = a_fleet()
    at(fleet, 1.0).push(ID, 1, [a_delta(ROWS)])
    assert only(fleet.pool(POOL)).profile("decode", 10.9) is not None
    assert only(fleet.pool(POOL)).profile("decode", 11.0) is None


def test_who_is_silent_for_long_is_forgotten_and_so_is_an_empty_pool() -> None:
    fleet = a_fleet(a_registration(), a_registration("e1"), a_registration(pool="code"))
    at(fleet, 10.0).push(ID, 1, [a_delta(ROWS)])  # is heard, too
    at(fleet, FORGOTTEN_S - 1).forget()
    assert set(fleet.pools) == {"chat", "code"}
    at(fleet, FORGOTTEN_S).forget()
    assert {name: list(pool.engines) for name, pool in fleet.pools.items()} == {"chat": ["e0"]}
    at(fleet, FORGOTTEN_S + 10).forget()
    assert fleet.pools == {}
