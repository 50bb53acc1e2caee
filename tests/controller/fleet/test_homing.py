"""What tables win, by hand: 2 layers x 4 experts, two on each of 2 GPUs, top-2."""

import numpy as np
import pytest

from controller.fleet.distinct import FEWEST
from controller.fleet.homing import Homed, Homing, homed, judged
from controller.fleet.token_tables import Told
from controller.fleet.traces import Request
from placer.marks import Mark, mark_of, marked
from tests.builders import a_placement

HALVES = a_placement([[0, 1, 2, 3], [0, 1, 2, 3]], gpus=2)
# Tokens whose experts are: all on GPU 0; one on each; all on GPU 1.
LOCAL, BOTH, AWAY = [[0, 1], [0, 1]], [[0, 2], [1, 3]], [[2, 3], [2, 3]]


def a_request(
    *tokens: list[list[int]],
    mark: Mark = Mark.TABLES,
    plan: str = HALVES.digest,
    engine: str = "",
) -> Request:
    return Request("decode", 4, np.array(tokens), mark=mark, rank=0, plan=plan, engine=engine)


@pytest.mark.parametrize(
    ("tokens", "local", "remote"),
    [([LOCAL], 1.0, 0.0), ([BOTH], 0.5, 1.0), ([AWAY], 0.0, 1.0), ([LOCAL, AWAY], 0.5, 0.5),
     ([LOCAL, BOTH], 0.75, 0.5)],
)  # fmt: skip
def test_of_one_request(tokens: list[list[list[int]]], local: float, remote: float) -> None:
    assert homed([a_request(*tokens)], HALVES) == Homed(1, local, remote, 0.0)


def test_requests_count_by_their_tokens_and_differ() -> None:
    found = homed([a_request(LOCAL, LOCAL, LOCAL), a_request(AWAY)], HALVES)
    assert (found.local, found.remote) == (0.75, 0.25)
    # 0 - 3/4 and 1 - 1/4, squared and summed, over 4 tokens, with one request to spare.
    assert found.error == pytest.approx((2 * (0.75**2 + 0.75**2)) ** 0.5 / 4)


def test_nothing_is_said_of_few_and_of_other_maps() -> None:
    assert judged([], HALVES) == Homing()
    other = [a_request(LOCAL, plan="another"), a_request(LOCAL, mark=Mark.NONE)]
    assert judged(other, HALVES) == Homing()
    found = judged([a_request(LOCAL)] * 50, HALVES)
    assert found.pays
    assert (
        found.reason
        == f"50 by tables and 0 by load were sampled: {FEWEST} of each tell what tables win"
    )


@pytest.mark.parametrize(
    ("ours", "pays", "won"),
    [(LOCAL, True, "+100.0%"), (BOTH, False, "+0.0%"), (AWAY, False, "+0.0%")],
)
def test_who_wins_nothing_for_sure_does_not_pay(
    ours: list[list[int]], pays: bool, won: str
) -> None:
    by_tables = [a_request(ours)] * FEWEST
    found = judged([*by_tables, *[a_request(BOTH, mark=Mark.LOAD)] * FEWEST], HALVES)
    assert found.pays is pays
    assert f"{won} of the remote traffic" in found.reason
    assert found.reason.endswith("it does not pay, requests go by load") is not pays


def test_what_may_still_win_goes_on() -> None:
    mixed = [a_request(LOCAL), a_request(AWAY)] * FEWEST
    found = judged(
        [*mixed, *[a_request(*one.expert_ids.tolist(), mark=Mark.LOAD) for one in mixed]], HALVES
    )
    assert found.pays


def foretold(local: float, remote: float, *used: int) -> Told:
    """used: experts that a token uses for sure, in both layers"""
    unused = np.ones((2, 4))
    unused[:, list(used)] = 0.0
    return Told(local, remote, unused)


def test_what_was_foretold_stands_beside_what_came() -> None:
    known, other = a_request(LOCAL, LOCAL, LOCAL), a_request(AWAY)
    told = {known: foretold(0.5, 0.4), other: foretold(0.1, 0.8)}
    found = homed([known, other, a_request(BOTH)], HALVES, told)
    assert found.predicted == pytest.approx((3 * 0.5 + 0.1) / 4)  # by their tokens
    assert found.predicted_remote == pytest.approx((3 * 0.4 + 0.8) / 4)


def test_what_was_foretold_to_be_saved_is_said() -> None:
    """By tables two requests of an engine use 2 experts a layer, by load 4: half is saved."""
    every = by_engines({"blue": LOCAL, "green": AWAY})
    told = {
        one: foretold(0.5, 0.6, 0, 1) if one.mark is Mark.TABLES else foretold(0.5, 0.8, 0, 1, 2, 3)
        for one in every
    }
    found = judged(every, HALVES, 2, told)
    assert [one.predicted_distinct for one in found.groups.values()] == pytest.approx([2, 4])
    assert "% (+25.0% foretold); 2.0 and 3.0 experts a layer" in found.reason
    assert found.reason.endswith("(+50.0% foretold)")
    some = judged(every, HALVES, 2, {every[0]: foretold(0.5, 0.6)})
    assert some.groups["tables"].predicted_distinct is None  # of so few


def by_engines(ours: dict[str, list[list[int]]]) -> list[Request]:
    """As many by tables for each engine, and by load of each kind anywhere."""
    found = []
    for engine, tokens in ours.items():
        found += [a_request(tokens, engine=engine) for _ in range(FEWEST)]
        found += [
            a_request(tokens, mark=Mark.LOAD, engine=name) for name in ours for _ in range(FEWEST)
        ]
    return found


def test_engines_whose_requests_are_alike_read_fewer_experts() -> None:
    """Two requests of one kind use 2 experts a layer; of two that are drawn from 60 of either kind
    59 in 119 are of one kind."""
    found = judged(by_engines({"blue": LOCAL, "green": AWAY}), HALVES, step=2)
    assert (found.groups["tables"].distinct, found.step) == (2.0, 2)
    assert found.groups["load"].distinct == pytest.approx(2 * 59 / 119 + 4 * 60 / 119)
    assert found.pays  # though as many tokens are sent away
    assert "2.0 and 3.0 experts a layer are read in a step of 2 requests" in found.reason


def test_of_one_engine_distinct_experts_are_no_reason_to_go_on() -> None:
    """Its ranks read for all of its requests, whoever owns them."""
    ours = [a_request(BOTH, engine="blue") for _ in range(FEWEST)]
    plain = [a_request(BOTH, mark=Mark.LOAD, engine="blue") for _ in range(FEWEST)]
    found = judged([*ours, *plain], HALVES, step=2)
    assert not found.pays
    assert found.groups["tables"].distinct == found.groups["load"].distinct == 2.0


def test_without_measured_steps_nobody_says_what_they_read() -> None:
    found = judged(by_engines({"blue": LOCAL, "green": AWAY}), HALVES)
    assert [one.distinct for one in found.groups.values()] == [None, None]
    assert "step" not in found.reason


@pytest.mark.parametrize("mark", [Mark.TABLES, Mark.LOAD])
@pytest.mark.parametrize("form", ["{}", "cmpl-{}-0", "chatcmpl-{}"])
def test_an_engine_keeps_the_mark_in_its_requests_id(mark: Mark, form: str) -> None:
    assert mark_of(form.format(marked("7f", mark))) is mark
    assert mark_of(form.format(marked(marked("7f", Mark.LOAD), mark))) is mark


@pytest.mark.parametrize("request_id", ["", "7f", "cmpl-7f-0", "my-placerts", "placertable"])
def test_other_ids_have_none(request_id: str) -> None:
    assert mark_of(request_id) is Mark.NONE
    assert marked("7f", Mark.NONE) == "7f"
