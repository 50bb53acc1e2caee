"""With a MiB a token the limits are a few tokens: FULL at most, and one a second in the mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.agent.sampling import ALL, BYTES, BYTES_PER_S, LONGEST, Sampler, Sampling

MIB = 2**20
FULL = BYTES // MIB  # tokens
A_TOKEN_S = MIB / BYTES_PER_S  # seconds after which another token is allowed


def a_sampler(how: Sampling | None = ALL) -> Sampler:
    sampler = Sampler(MIB, now_s=0.0)
    sampler.ask(how)
    return sampler


def add(sampler: Sampler, request: str, position: int, count: int) -> None:
    """Tokens whose vocabulary id is their position, and whose expert is its last digit."""
    ids = position + np.arange(count)
    sampler.add(request, position, (ids % 10).reshape(-1, 1, 1), ids)


def whole(sampler: Sampler, request: str, count: int, now_s: float = 0.0) -> None:
    """A request from its begin to its end."""
    sampler.begin(request, 0, 0, now_s)
    add(sampler, request, 0, count)
    sampler.finish([request])


def taken(sampler: Sampler) -> list[list[int]]:
    return [[] if one.token_ids is None else one.token_ids.tolist() for one in sampler.take()]


def begins(sampler: Sampler, now_s: float) -> bool:
    """Whether a request that begins now is kept; it ends at once, without tokens."""
    sampler.begin("probe", 0, 0, now_s)
    wanted = sampler.wants("probe")
    sampler.finish(["probe"])
    return wanted


def test_a_request_is_taken_whole_and_once_it_has_finished() -> None:
    sampler = a_sampler()
    sampler.begin("a", 0, 0, 0.0)
    add(sampler, "a", 0, 3)
    add(sampler, "a", 3, 1)
    assert sampler.take() == []
    sampler.finish(["a"])
    (one,) = sampler.take()
    assert one.token_ids is not None
    assert one.token_ids.tolist() == [0, 1, 2, 3]
    assert one.expert_ids.tolist() == [[[0]], [[1]], [[2]], [[3]]]
    assert sampler.take() == []


def test_requests_that_are_served_at_once_are_kept_apart() -> None:
    sampler = a_sampler()
    for request in ("a", "b"):
        sampler.begin(request, 0, 0, 0.0)
    add(sampler, "a", 0, 2)
    add(sampler, "b", 0, 3)
    add(sampler, "a", 2, 2)
    sampler.finish(["b", "a"])
    assert taken(sampler) == [[0, 1, 2], [0, 1, 2, 3]]


def test_a_request_whose_first_tokens_were_cached_begins_after_them() -> None:
    sampler = a_sampler()
    sampler.begin("a", 16, 0, 0.0)
    add(sampler, "a", 16, 2)
    sampler.finish(["a"])
    assert taken(sampler) == [[16, 17]]


def test_what_never_began_leaves_nothing() -> None:
    sampler = a_sampler()
    add(sampler, "a", 0, 3)
    sampler.finish(["a"])
    assert not sampler.wants("a")
    assert sampler.take() == []


def test_what_began_without_tokens_leaves_nothing() -> None:
    sampler = a_sampler()
    sampler.begin("a", 0, 0, 0.0)
    assert sampler.wants("a")
    sampler.finish(["a"])
    assert not sampler.wants("a")
    assert sampler.take() == []


def test_before_it_is_asked_nothing_is_kept_and_nothing_once_it_is_not_asked_any_more() -> None:
    sampler = a_sampler(None)
    assert not begins(sampler, 0.0)
    sampler.ask(ALL)
    whole(sampler, "a", 3)
    sampler.begin("b", 0, 0, 0.0)
    add(sampler, "b", 0, 2)
    sampler.ask(None)
    assert not sampler.wants("b")
    assert sampler.take() == []
    assert sampler._held == 0


def test_asked_for_one_request_in_ten_seconds_it_keeps_the_first_of_each_ten() -> None:
    sampler = a_sampler(Sampling(10.0, token_ids=True))
    assert [now_s for now_s in range(0, 36, 4) if begins(sampler, now_s)] == [0, 12, 24]


def test_vocabulary_ids_are_kept_only_while_they_are_asked_for() -> None:
    sampler = a_sampler(Sampling(0.0, token_ids=False))
    sampler.begin("a", 0, 0, 0.0)
    sampler.add("a", 0, np.zeros((3, 1, 1), dtype=int), None)
    sampler.finish(["a"])
    (one,) = sampler.take()
    assert (len(one.expert_ids), one.token_ids) == (3, None)
    sampler.begin("b", 0, 0, 0.0)
    sampler.ask(ALL)  # of a request some of whose ids are not known
    assert not sampler.wants("b")
    sampler.begin("c", 0, 0, 0.0)
    sampler.ask(Sampling(10.0, token_ids=True))  # fewer than before, of the same kind
    assert sampler.wants("c")


@pytest.mark.parametrize(
    ("first", "tokens", "prompt", "of_it"), [(0, 5, 3, 3), (2, 5, 3, 1), (4, 2, 3, 0), (0, 2, 3, 2)]
)
def test_it_says_how_many_of_the_tokens_are_of_the_prompt(
    first: int, tokens: int, prompt: int, of_it: int
) -> None:
    sampler = a_sampler()
    sampler.begin("a", first, prompt, 0.0)
    add(sampler, "a", first, tokens)
    sampler.finish(["a"])
    assert [one.prompt for one in sampler.take()] == [of_it]


def test_after_a_burst_requests_are_kept_at_the_mean_rate() -> None:
    sampler = a_sampler()
    whole(sampler, "burst", FULL)
    assert len(sampler.take()) == 1
    assert not begins(sampler, 0.0)
    assert begins(sampler, A_TOKEN_S)
    whole(sampler, "a", 3, A_TOKEN_S)  # one token was saved up: two are owed
    assert not begins(sampler, 3 * A_TOKEN_S)
    assert begins(sampler, 3.5 * A_TOKEN_S)


def test_a_request_that_is_not_wanted_is_not_kept_later_either() -> None:
    sampler = a_sampler()
    whole(sampler, "burst", FULL)
    sampler.begin("a", 0, 0, 0.0)
    assert not sampler.wants("a")
    sampler.take()
    assert begins(sampler, A_TOKEN_S)
    add(sampler, "a", 0, 1)
    sampler.finish(["a"])
    assert sampler.take() == []


def test_a_quiet_time_saves_up_one_burst_and_no_more() -> None:
    sampler = a_sampler()
    long = 1000 * FULL * A_TOKEN_S
    whole(sampler, "burst", FULL, long)
    sampler.take()
    assert not begins(sampler, long)


def test_what_waits_to_be_taken_counts_until_it_is() -> None:
    sampler = a_sampler()
    long = 1000 * FULL * A_TOKEN_S
    whole(sampler, "burst", FULL)
    assert not begins(sampler, long)
    sampler.take()
    assert begins(sampler, long)


def test_a_request_that_is_still_served_counts_too() -> None:
    sampler = a_sampler()
    sampler.begin("open", 0, 0, 0.0)
    add(sampler, "open", 0, FULL)
    assert not begins(sampler, 1000 * FULL * A_TOKEN_S)


@pytest.mark.parametrize("position", [0, FULL - 1, FULL + 1])
def test_a_request_whose_positions_jump_is_dropped_and_its_bytes_given_back(position: int) -> None:
    sampler = a_sampler()
    sampler.begin("a", 0, 0, 0.0)
    add(sampler, "a", 0, FULL)
    add(sampler, "a", position, 1)
    assert not sampler.wants("a")
    add(sampler, "a", FULL, 1)
    sampler.finish(["a"])
    assert sampler.take() == []
    assert begins(sampler, 1000 * FULL * A_TOKEN_S)


def test_a_request_that_begins_again_counts_once() -> None:
    sampler = a_sampler()
    sampler.begin("a", 0, 0, 0.0)
    add(sampler, "a", 0, 5)
    sampler.begin("a", 0, 0, 0.0)
    add(sampler, "a", 0, 3)
    sampler.finish(["a"])
    assert taken(sampler) == [[0, 1, 2]]
    assert sampler._held == 0


def test_the_longest_request_is_closed_and_kept_so_far() -> None:
    sampler = Sampler(1, now_s=0.0)
    sampler.ask(ALL)
    sampler.begin("a", 0, 0, 0.0)
    add(sampler, "a", 0, LONGEST - 1)
    assert sampler.wants("a")
    add(sampler, "a", LONGEST - 1, 1)
    assert not sampler.wants("a")
    add(sampler, "a", LONGEST, 1)
    sampler.finish(["a"])
    assert [len(ids) for ids in taken(sampler)] == [LONGEST]


REQUESTS = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 40)),  # seconds since the last one
        st.tuples(st.just("add"), REQUESTS, st.integers(1, 20)),
        st.tuples(st.just("jump"), REQUESTS),
        st.tuples(st.just("finish"), REQUESTS),
        st.tuples(st.just("take")),
    ),
    max_size=60,
)


@given(STEPS)
def test_what_is_held_is_what_was_added_and_not_taken_and_in_the_end_nothing(
    steps: list[tuple[str, int, int]],
) -> None:
    sampler = a_sampler()
    served: dict[str, int] = {}  # what a plain reading holds: positions of requests, and
    done: list[list[int]] = []  # what is finished
    now_s, number = 0.0, 0
    for step, *args in steps:
        name = f"{number - args[0] if args else 0}"  # one of the last that began
        full = sum(served.values()) + sum(map(len, done)) >= FULL
        if step == "begin":
            number, now_s = number + 1, now_s + args[0]
            sampler.begin(f"{number}", 0, 0, now_s)
            if sampler.wants(f"{number}"):
                assert not full
                served[f"{number}"] = 0
        elif step == "add" and name in served:
            add(sampler, name, served[name], args[1])
            if full:
                served.pop(name)  # whoever wants more has lost
            else:
                served[name] += args[1]
        elif step == "jump" and name in served:
            add(sampler, name, served.pop(name) + 1, 1)
        elif step == "finish":
            sampler.finish([name])
            if tokens := served.pop(name, 0):
                done.append(list(range(tokens)))
        elif step == "take":
            assert taken(sampler) == done
            done = []
        # Private, since a limit says little of how far away it is.
        assert sampler._held == MIB * (sum(served.values()) + sum(map(len, done)))
        assert sampler._held < MIB * (FULL + 20)  # the limit, and one addition
    sampler.finish(list(served))
    sampler.take()
    assert sampler._held == 0
