"""`placer status`, and how every verb fails that needs a controller."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from placer.cost import Score
from placer.files.plans import write_plan
from placer.pace import Pace
from placer.plan import Comparison, Plan
from tests.agent.workers import a_plan, a_worker
from tests.cli.conftest import Placer
from tests.cli.tiny_controller import Running, a_controller
from tests.controller.server.tiny_service import Authority


def page(placer: Placer, *args: str) -> str:
    """Whatever the width of the terminal."""
    ended = placer("status", *args)
    assert (ended.code, ended.err) == (0, "")
    return " ".join(ended.out.split())


MOVED = [[3, 2, 1, 0], [0, 1, 2, 3]]
NOWHERE = "127.0.0.1:1"


def test_a_controller_without_engines_says_how_to_attach_them(placer: Placer) -> None:
    with a_controller() as running:
        ended = placer("status", "--to", running.address)
    assert ended.code == 0
    assert f"no engine has registered yet: start them with PLACER_AGENT={running.address}" in (
        ended.out
    )


def test_the_page_tells_model_mode_engines_and_the_decision(placer: Placer) -> None:
    with a_controller() as running:
        running.join()
        running.tick()
        out = re.sub(r"\d+ s ago", "just now", page(placer, "--to", running.address))
    for part in (
        "tiny on 2 ranks, 4 slots a layer advisory: moves nothing until `placer approve`",
        "0 tokens in the last 5 min",
        "hold, just now: 0 tokens of mixed traffic in 300 s < 10,000",
        "applied no plan",
        "engine-1",
    ):
        assert part in out


def test_before_the_first_decision_it_says_so(placer: Placer) -> None:
    with a_controller() as running:
        running.join()
        assert "decision none yet" in page(placer, "--to", running.address)


def test_the_page_says_how_long_steps_take(placer: Placer) -> None:
    with a_controller() as running:
        running.join()
        assert "steps" not in page(placer, "--to", running.address)
        running.do(work(running))
        out = page(placer, "--to", running.address)
    assert "steps 40 ms each, engines are busy 25% of the time" in out


async def work(running: Running) -> None:
    registration = next(iter(running.loop.fleet.pool("tiny").members.values())).registration
    paces = {"decode": Pace(50, 2.0, 8.0)}
    running.loop.fleet.push(registration.id, 1, [], paces)


def test_an_applied_plan_stands_with_its_age(placer: Placer) -> None:
    write_plan(Path("p.json"), a_plan(MOVED))
    with a_controller() as running:
        running.join()
        placer("apply", "p.json", "--to", running.address)
        assert "applied plan-1, " in page(placer, "--to", running.address)


def test_a_plan_that_waits_comes_with_the_command_to_approve_it(placer: Placer) -> None:
    with a_controller() as running:
        running.join()
        running.do(propose(running, a_plan(MOVED)))
        option = f"--to {running.address}"
        assert f"placer approve plan-1 {option}" in page(placer, "--to", running.address)
        placer("approve", "plan-1", "--to", running.address)
        out = page(placer, "--to", running.address)
    assert f"at once: placer approve plan-1 --now {option}" in out


def test_a_plan_that_waits_says_what_it_saves_of_what(placer: Placer) -> None:
    """12 and 9 ms of MoE layers in a step of 30 ms."""
    fit = Comparison(a_score(0.012), a_score(0.009))
    plan = a_plan(MOVED, fit=fit, whole_step_s=0.03)
    with a_controller() as running:
        running.join()
        running.do(propose(running, plan))
        out = page(placer, "--to", running.address)
        told = placer("explain", "plan-1", "--to", running.address).out
    saved = "the MoE layers of a step take 25.0% less time and a whole step 10.0%"
    assert saved in out
    assert saved in " ".join(told.split())


def a_score(step_s: float) -> Score:
    return Score("expected", 1, 1, 1, 1, None, None, None, step_s, 0.0, step_s, 0.0)


async def propose(running: Running, plan: Plan) -> None:
    running.loop.arbiter.propose("tiny", plan, "", "it pays")


def test_troubles_are_shown_and_stay_on_their_line(placer: Placer) -> None:
    with a_controller() as running:
        running.join()
        running.loop.conditions["ledger"] = "the disk is full\nfree some\x1b[2J space"
        running.hear(condition="a rank\nhangs")
        out = page(placer, "--to", running.address)
    assert "condition: ledger: the disk is full free some?[2J space" in out
    assert "a rank hangs" in out


def test_one_pool_may_be_asked_for(placer: Placer) -> None:
    with a_controller() as running:
        running.join("tiny")
        running.join("other")
        out = page(placer, "other", "--to", running.address)
        ended = placer("status", "nope", "--to", running.address)
    assert "other" in out
    assert "tiny on 2 ranks" in out
    assert out.count("on 2 ranks") == 1
    assert (ended.code, ended.err) == (2, "error: no pool 'nope': there is other, tiny\n")


def test_json_is_one_object_with_numbers(placer: Placer) -> None:
    with a_controller() as running:
        running.join()
        running.tick()
        found = placer("status", "--to", running.address, "--json").json
    assert found["status"] == "done"
    assert found["conditions"] == []
    (pool,) = found["pools"]
    assert (pool["name"], pool["mode"], pool["ranks"], pool["operation"]) == (
        "tiny", "advisory", 2, None,
    )  # fmt: skip
    (engine,) = pool["engines"]
    assert (engine["name"], engine["workers"], engine["tokens"]) == ("engine-1", 1, 0)


def test_the_environment_names_the_controller(
    placer: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_controller() as running:
        monkeypatch.setenv("PLACER_CONTROLLER", running.address)
        assert placer("status").code == 0


VERBS = [
    ("status",),
    ("watch",),
    ("history",),
    ("explain", "plan-1"),
    ("approve", "plan-1"),
    ("approve", "plan-1", "--now"),
    ("rollback", "tiny"),
    ("apply", "p.json"),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_where_nobody_listens_every_verb_says_so(placer: Placer, verb: tuple[str, ...]) -> None:
    write_plan(Path("p.json"), a_plan(MOVED))
    ended = placer(*verb, "--to", NOWHERE)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.endswith(
        f"error: no controller answers at {NOWHERE}: does `placer serve` run, is --to right, and do"
        " both use TLS or neither?\n"
    )


def test_json_tells_the_error_too(placer: Placer) -> None:
    ended = placer("status", "--to", NOWHERE, "--json")
    assert ended.code == 2
    assert ended.json["status"] == "error"
    assert NOWHERE in ended.json["reason"]


@pytest.mark.parametrize("address", ["nowhere", "a b:1", "host:port", ""])
def test_what_is_no_address_is_not_tried(placer: Placer, address: str) -> None:
    ended = placer("status", "--to", address)
    assert (ended.code, ended.err) == (
        2,
        f"error: {address!r} is no address: write it as host:port\n",
    )


def test_tokens_are_asked_for_and_shown(placer: Placer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Path("tokens.yaml").absolute()
    tokens.write_text("agent: [an-agents-token-1]\noperator: [an-operators-token]\n")
    tokens.chmod(0o600)
    with a_controller(tokens) as running:
        none = placer("status", "--to", running.address)
        monkeypatch.setenv("PLACER_TOKEN", "somebody-elses-token")
        wrong = placer("status", "--to", running.address)
        monkeypatch.setenv("PLACER_TOKEN", "an-agents-token-1")
        agents = placer("status", "--to", running.address)
        monkeypatch.setenv("PLACER_TOKEN", "an-operators-token")
        right = placer("status", "--to", running.address)
    assert [none.code, wrong.code, agents.code, right.code] == [2, 2, 2, 0]
    remedy = "set PLACER_TOKEN or PLACER_TOKEN_FILE to one of the controller's\n"
    assert none.err == f"error: no token: {remedy}"
    assert wrong.err == f"error: unknown token: {remedy}"
    assert agents.err.endswith(
        "is for operators and fronts, and this is an agent's token: use an operator's or a "
        "front's\n"
    )
    assert "somebody" not in wrong.err


def test_a_token_is_not_sent_to_other_hosts_in_the_open(
    placer: Placer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACER_TOKEN", "an-operators-token")
    ended = placer("status", "--to", "controller.example:7077")
    assert ended.code == 2
    assert "could be read on the way" in ended.err


def test_a_command_that_is_not_let_in_says_why(
    placer: Placer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = Authority(tmp_path, "ours")
    tls = {"certificate": ours.certificate, "key": ours.key, "client_ca": ours.ca}
    with a_controller(**tls) as running:
        to = running.address
        plain = placer("status", "--to", to)
        monkeypatch.setenv("PLACER_TLS_CA", str(ours.ca))
        unknown = placer("status", "--to", to)
        monkeypatch.setenv("PLACER_TLS_CERT", str(ours.certificate))
        monkeypatch.setenv("PLACER_TLS_KEY", str(ours.key))
        ours.key.chmod(0o604)
        let_in = placer("status", "--to", to)
    assert [plain.code, unknown.code, let_in.code] == [2, 2, 0]
    assert plain.err == (
        f"error: the controller at {to} answers, but it wants TLS: set PLACER_TLS_CA to its "
        "authority's certificate\n"
    )
    assert unknown.err == (
        f"error: the controller at {to} answers, but it wants a client's certificate: set "
        "PLACER_TLS_CERT and PLACER_TLS_KEY\n"
    )
    assert let_in.err == (f"note: {ours.key} can be read by everybody on this host: chmod 600 it\n")


def test_a_pool_of_two_widths_tells_of_each(placer: Placer) -> None:
    with a_controller() as running:
        running.join()
        running.join(engine="engine-2")
        wide = replace(a_worker(), ep_size=4)
        running.hear("tiny", "engine-3", wide)
        running.tick()
        out = page(placer, "--to", running.address)
    assert "tiny tiny on 2 ranks, 4 slots a layer and 4 ranks, 4 slots a layer " in out
    assert "on 4 ranks hold: 0 tokens of mixed traffic in 300 s < " in out
    assert re.search(r"engine-3 4 1 \d+ s ago", out)
