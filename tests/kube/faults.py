"""What API servers and networks do to an operator, while one more fleet changes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.kube.proxy import Asked, Proxy

Answer = tuple[int, dict[str, str]] | None


@contextmanager
def answering(proxy: Proxy, answer: Callable[[Asked], Answer]) -> Iterator[None]:
    before, proxy.before = proxy.before, answer
    try:
        yield
    finally:
        proxy.before = before


@contextmanager
def dropped(proxy: Proxy) -> Iterator[None]:
    """All watches are cut."""
    proxy.cut()
    yield


@contextmanager
def gone(proxy: Proxy) -> Iterator[None]:
    """All watches are cut, and what they were at is too old: each of them hears 410 once."""
    told: set[str] = set()
    guard = threading.Lock()

    def answer(asked: Asked) -> Answer:
        with guard:
            if asked.is_watch and asked.path not in told:
                told.add(asked.path)
                return 410, {}
        return None

    with answering(proxy, answer):
        proxy.cut()
        yield


@contextmanager
def busy(proxy: Proxy) -> Iterator[None]:
    """Every other write, and every watch that was cut, hears 429 first."""
    told: set[str] = set()
    guard = threading.Lock()

    def answer(asked: Asked) -> Answer:
        with guard:
            if (asked.is_write or asked.is_watch) and asked.what not in told:
                told.add(asked.what)
                return 429, {"Retry-After": "1"}
        return None

    with answering(proxy, answer):
        proxy.cut()
        yield


@contextmanager
def conflicting(proxy: Proxy) -> Iterator[None]:
    """Each status is refused three times, as if somebody had been first."""
    told: dict[str, int] = {}
    guard = threading.Lock()

    def answer(asked: Asked) -> Answer:
        with guard:
            if asked.is_write and asked.path.endswith("/status"):
                told[asked.path] = told.get(asked.path, 0) + 1
                if told[asked.path] <= 3:
                    return 409, {}
        return None

    with answering(proxy, answer):
        yield


FAULTS = {
    "dropped watches": dropped,
    "410 Gone": gone,
    "429 Too Many Requests": busy,
    "409 Conflict": conflicting,
}
