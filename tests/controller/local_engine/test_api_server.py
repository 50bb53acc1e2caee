"""An engine's API server, as a front or a client sees it."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from controller.local_engine.api_server import ApiServer
from controller.local_engine.local_engine import LocalEngine
from controller.samples import parse, present_by_rank
from tests.controller.local_engine.tiny_engine import MODEL, PROMPTS, eventually


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(MODEL, 2) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: LocalEngine) -> Iterator[ApiServer]:
    server = ApiServer(engine)
    yield server
    server.close()


def ask(server: ApiServer, path: str, body: Any = None, **headers: str) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with urlopen(Request(server.url + path, data, named), timeout=60) as answer:
        return bytes(answer.read())


def complete(server: ApiServer, **asked: Any) -> Any:
    return json.loads(ask(server, "/v1/completions", asked))


def refusal(server: ApiServer, body: Any, **headers: str) -> tuple[int, str]:
    with pytest.raises(HTTPError) as caught:
        ask(server, "/v1/completions", body, **headers)
    with caught.value as error:
        return error.code, json.loads(error.read())["error"]["message"]


def test_a_completion_is_the_engine_s_own(engine: LocalEngine, server: ApiServer) -> None:
    prompt = list(PROMPTS[0])
    expected = engine.submit(prompt, 12).tokens()
    told = complete(server, prompt=prompt, max_tokens=12, return_token_ids=True)
    assert told["choices"][0]["token_ids"] == expected
    assert told["usage"]["total_tokens"] == len(prompt) + 12
    text = complete(server, prompt=PROMPTS[0].decode(), max_tokens=12)["choices"][0]
    assert text["text"] == bytes(expected).decode("latin-1")
    assert text["finish_reason"] == "length"


def test_a_stream_has_an_event_a_token(engine: LocalEngine, server: ApiServer) -> None:
    asked = {
        "prompt": list(PROMPTS[1]), "max_tokens": 5, "stream": True, "return_token_ids": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    events = ask(server, "/v1/completions", asked).decode().strip().split("\n\n")
    assert events.pop() == "data: [DONE]"
    *tokens, usage = [json.loads(one.removeprefix("data: ")) for one in events]
    found = [one["choices"][0]["token_ids"][0] for one in tokens]
    assert found == engine.submit(PROMPTS[1], 5).tokens()
    assert [one["choices"][0]["finish_reason"] for one in tokens] == [None] * 4 + ["length"]
    assert usage["usage"]["completion_tokens"] == 5


def test_a_rank_is_chosen_as_vllm_has_it(engine: LocalEngine, server: ApiServer) -> None:
    asked = {"prompt": [7], "max_tokens": 1}
    for told in ("0", "1", "nonsense"):
        assert ask(server, "/v1/completions", asked, X_Data_Parallel_Rank=told)
    status, why = refusal(server, asked, X_Data_Parallel_Rank="2")
    assert (status, why) == (400, "data_parallel_rank 2 is out of range [0, 2).")
    there = [engine.submit([7], 400, rank=1) for _ in range(3)]
    assert eventually(lambda: engine.status.running == 3)
    assert present_by_rank(ask(server, "/metrics")) == {0: 0, 1: 3}
    for one in there:
        one.tokens()


def test_metrics_are_those_of_the_engine(engine: LocalEngine, server: ApiServer) -> None:
    assert parse(ask(server, "/metrics").decode()) == engine.sample


def test_what_cannot_be_served_is_refused(server: ApiServer) -> None:
    assert refusal(server, {"prompt": []})[0] == 400
    status, why = refusal(server, {"prompt": [1], "max_tokens": 10**6})
    assert status == 400
    assert "exceed the context" in why
    assert "outside 0.." in refusal(server, {"prompt": [999]})[1]
    assert "prompt" in refusal(server, {"max_tokens": 3})[1]


def test_a_client_that_hangs_up_frees_its_seat(engine: LocalEngine, server: ApiServer) -> None:
    body = json.dumps({"prompt": [7], "max_tokens": 900, "stream": True}).encode()
    answer = urlopen(Request(server.url + "/v1/completions", body), timeout=60)
    answer.read(10)
    assert engine.status.running == 1
    steps = engine.status.steps
    answer.close()
    assert eventually(lambda: engine.status.running == 0)
    assert engine.status.steps < steps + 800
