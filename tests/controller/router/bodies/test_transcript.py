"""What came of a stream, as text and as tokens; and how the rest of it is told."""

import json
from typing import Any

import pytest

from controller.router.bodies.splice import Splice
from controller.router.bodies.transcript import KEPT_BYTES, Transcript, data_of, shown

ASKED = {"model": "m", "prompt": "x", "max_tokens": 8, "stream": True, "temperature": 0}


def event(text: str, ids: list[int], **more: Any) -> bytes:
    choice = {"index": 0, "text": text, "token_ids": ids, **more}
    return b"data: %b\n\n" % json.dumps({"id": "i", "object": "o", "choices": [choice]}).encode()


def transcript(*came: bytes, tells: bool = False) -> Transcript:
    found = Transcript(tells)
    for one in came:
        found.add(one)
    return found


def went_on(found: Transcript, **more: Any) -> dict[str, Any]:
    return dict(json.loads(Splice(ASKED | more, found, 100).body))


def test_ids_are_not_shown_and_text_that_looks_like_them_is() -> None:
    tricky = 'says "token_ids":[1] and \\"token_ids\\": [2]'
    data = event(tricky, [1, 2], prompt_token_ids=[3])
    [choice] = data_of(shown(data))[0]["choices"]
    assert choice == {"index": 0, "text": tricky, "token_ids": None, "prompt_token_ids": None}


@pytest.mark.parametrize(
    "other",
    ['"stop_token_ids":[1]', '"token_ids":[[1]]', '"token_ids":["a"]', '"token_ids":null',
     '"token_ids":[', '"a":"]","ids":[1]', '"token_ids":[1'],
)  # fmt: skip
def test_only_lists_of_ids_are_taken_for_ids(other: str) -> None:
    data = f'data: {{{other},"token_ids":[1, 2],"prompt_token_ids":[3]}}\n\n'
    told = f'data: {{{other},"token_ids":null,"prompt_token_ids":null}}\n\n'
    assert shown(data.encode()) == told.encode()


def test_prompt_and_tokens_are_those_of_all_events() -> None:
    found = transcript(event("a", [5], prompt_token_ids=[1, 2]), event("b c", [6, 7]))
    assert went_on(found)["prompt"] == [1, 2, 5, 6, 7]
    assert went_on(found)["max_tokens"] == 5


def test_tokens_of_which_no_text_came_are_generated_again() -> None:
    """Half a character: the engine that goes on could not tell the other half."""
    found = transcript(event("a", [5], prompt_token_ids=[1]), event("", [6]), event("", [7]))
    assert went_on(found)["prompt"] == [1, 5]
    told = transcript(event("a", [5], prompt_token_ids=[1]), event("", [6]), tells=True)
    assert went_on(told)["prompt"] == [1, 5, 6]  # the client has it


@pytest.mark.parametrize(
    "came",
    [[], [event("a", [])], [event("a", [5])],  # no ids of the prompt
     [event("a", [5], prompt_token_ids=[1]), event("b", [6], index=1)],
     [event("a", [5], prompt_token_ids=[1]), b'data: {"odd": 1}\n\n']],
)  # fmt: skip
def test_what_is_not_known_to_the_token_does_not_go_on(came: list[bytes]) -> None:
    with pytest.raises(ValueError, match="nobody told which tokens came"):
        Splice(ASKED, transcript(*came), 100)


def test_thoughts_and_calls_of_tools_do_not_go_on_as_text() -> None:
    choice = {"index": 0, "delta": {"reasoning": "hm"}, "token_ids": [5]}
    data = {"choices": [choice], "prompt_token_ids": [1]}
    with pytest.raises(ValueError, match="tokens"):
        Splice(ASKED, transcript(b"data: %b\n\n" % json.dumps(data).encode()), 100)


def test_a_stream_that_only_lacks_its_end_gets_that() -> None:
    found = transcript(event("a", [5], prompt_token_ids=[1], finish_reason="stop"))
    splice = Splice(ASKED | {"stream_options": {"include_usage": True}}, found, 100)
    assert splice.is_over
    [usage] = data_of(splice.rest())
    assert usage["usage"] == {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    assert splice.rest().endswith(b"data: [DONE]\n\n")


def test_one_that_has_all_its_tokens_ends_for_their_number() -> None:
    found = transcript(*(event("a", [5], prompt_token_ids=[1]) for _ in range(8)))
    splice = Splice(ASKED, found, 100)
    assert splice.is_over
    assert data_of(splice.rest())[0]["choices"][0]["finish_reason"] == "length"


def test_min_tokens_counts_what_came() -> None:
    found = transcript(event("a b", [5, 6], prompt_token_ids=[1]))
    assert went_on(found, min_tokens=3)["min_tokens"] == 1
    found = transcript(event("a b", [5, 6], prompt_token_ids=[1]))
    assert went_on(found, min_tokens=1)["min_tokens"] == 0


def test_options_that_say_nothing_are_left_out() -> None:
    found = transcript(event("a", [5], prompt_token_ids=[1]))
    more = went_on(found, logprobs=False, n=1, stop=None, top_p=0.5)
    assert not {"logprobs", "n", "stop"} & set(more)
    assert more["top_p"] == 0.5


def test_long_streams_are_looked_into_as_they_come() -> None:
    found = Transcript(False)
    one = event("a" * 1000, [5], prompt_token_ids=[1])
    for _ in range(2 * KEPT_BYTES // len(one)):
        found.add(one)
    assert found._size <= KEPT_BYTES
    found.read()
    assert len(found.tokens) == 2 * KEPT_BYTES // len(one)
