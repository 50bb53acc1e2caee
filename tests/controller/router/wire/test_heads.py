"""Heads of messages, and addresses."""

import json

import pytest

from controller.router.wire import heads
from controller.router.wire.addresses import AddressError, address


@pytest.mark.parametrize(
    ("text", "url", "port", "tls"),
    [("http://a:8000", "http://a:8000", 8000, False), ("http://a", "http://a:80", 80, False),
     ("https://a/", "https://a:443", 443, True), ("http://[::1]:9", "http://[::1]:9", 9, False),
     (" HTTP://A.b-c:1 ", "http://a.b-c:1", 1, False)],
)  # fmt: skip
def test_an_address_is_written_in_one_way(text: str, url: str, port: int, tls: bool) -> None:
    found = address(text)
    assert (found.url, found.port, found.tls) == (url, port, tls)


@pytest.mark.parametrize(
    "text",
    ["", "a:1", "ftp://a", "http://", "http://a/v1", "http://a?b", "http://u:p@a", "http://a:0",
     "http://a:99999", "http://a b", "http://a\r\nX: y", "http://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_told(text: str) -> None:
    with pytest.raises(AddressError, match="write it as http://host:port"):
        address(text)


def test_what_connection_names_stays_on_this_connection() -> None:
    headers = [(b"connection", b"close, X-Own"), (b"x-own", b"1"), (b"x-other", b"2")]
    assert heads.passed_on(headers, heads.HOP) == [(b"x-other", b"2")]


def test_an_error_has_openai_s_form() -> None:
    told = json.loads(heads.error(429, "too many"))["error"]
    assert told == {"message": "too many", "type": "rate_limit_error", "param": None, "code": 429}


def test_an_answer_says_how_long_it_is_and_whether_more_may_follow() -> None:
    assert heads.answer(200, [(b"a", b"b")], b"xy", True) == (
        b"HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 2\r\n\r\nxy"
    )
    assert heads.answer(799, [], b"", False) == (
        b"HTTP/1.1 799 Unknown\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
