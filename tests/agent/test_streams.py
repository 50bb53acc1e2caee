"""A watch whose stream and clock are stand-ins: the work of its thread, done by the test."""

from collections.abc import Callable, Iterator
from itertools import count, repeat
from threading import Event
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from placer.agent.streams import BREATH_S, Watch, told
from placer.clock import SystemClock
from placer.errors import FileError, PlacerError


class Broken(grpc.RpcError):  # type: ignore[misc]
    def __init__(self, code: str = "UNAVAILABLE", details: str = "") -> None:
        super().__init__()
        self.code, self.details = (lambda: grpc.StatusCode[code]), (lambda: details)


class World(SystemClock):
    """A watch and its clock. In every pause a reporter asks for a plan; the last pause ends it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, waits: int) -> None:
        super().__init__()
        self.now_s, self.waited, self._left = 0.0, list[float](), waits
        self.told: list[str] = []  # errors that the reporter got
        self.epochs: list[int] = []  # plans that it got
        self.watch = Watch("host:1", lambda _: self.stream(), self)
        monkeypatch.setattr(self.watch, "_thread", "this one")
        self.stream: Callable[[], Iterator[Any]] = lambda: iter(())

    def monotonic(self) -> float:
        return self.now_s

    def wait(self, event: Event, seconds: float) -> bool:
        """Whether it is over."""
        if self._left == 0:
            return True
        self._left -= 1
        self.waited.append(seconds)
        self.now_s += seconds
        try:
            if found := self.watch.newest(max(self.epochs, default=0)):
                self.epochs.append(found[0])
        except PlacerError as error:
            self.told.append(str(error))
        return False

    def run(self, stream: Callable[[], Iterator[Any]]) -> None:
        self.stream = stream
        self.watch._run()


def breaking(world: World, codes: Iterator[str], lasting_s: float = 0) -> Iterator[Any]:
    world.now_s += lasting_s
    raise Broken(next(codes))
    yield


def test_a_dead_controller_is_tried_again_after_pauses_that_double_and_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, 8)
    world.run(lambda: breaking(world, repeat("UNAVAILABLE")))
    assert world.waited == [0, 1, 2, 4, 8, 16, 20, 20]
    (told,) = world.told
    assert told.startswith("no controller answers at host:1: is PLACER_AGENT its address")


def test_one_that_ends_every_watch_is_not_asked_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 5)
    world.run(lambda: iter(()))
    assert world.waited == [0, 1, 2, 4, 8]
    (told,) = world.told
    assert "ended the watch for plans" in told


def test_a_flood_of_plans_is_read_with_a_breath_after_each(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, 5)
    world.run(lambda: (SimpleNamespace(epoch=at, file=b"") for at in count(1)))
    assert world.waited == [0, *[BREATH_S] * 4]
    assert world.epochs == [1, 2, 3, 4]


def test_after_a_watch_that_stood_the_pauses_begin_anew_and_its_break_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, 4)
    world.run(lambda: breaking(world, repeat("UNAVAILABLE"), lasting_s=21))
    assert world.waited == [0, 1, 1, 1]
    assert len(world.told) == 3


def test_another_break_than_the_last_is_told_and_so_is_one_after_a_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, 7)
    codes = iter(["UNAVAILABLE", "UNAVAILABLE", "INTERNAL", "INTERNAL", "INTERNAL", "INTERNAL"])

    def stream() -> Iterator[Any]:
        if len(world.waited) == 4:
            yield SimpleNamespace(epoch=1, file=b"")
        yield from breaking(world, codes)

    world.run(stream)
    assert world.epochs == [1]
    assert [text.split(" at ")[0] for text in world.told] == [
        "no controller answers",
        "the controller",
        "the controller",
    ]


def test_an_unforeseen_error_of_the_watch_is_told_and_does_not_end_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails() -> Iterator[Any]:
        raise ValueError("a bug")

    world = World(monkeypatch, 3)
    world.run(fails)
    assert world.waited == [0, 1, 2]
    (told,) = world.told
    assert "a bug" in told


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            Broken("UNAVAILABLE", "Getting metadata from plugin failed with error: cannot read it"),
            "cannot read it",
        ),
        (Broken("UNAUTHENTICATED", "no\ntoken"), "host:1: no token; is PLACER_TOKEN"),
        (Broken("PERMISSION_DENIED", "not you"), "host:1: not you; is PLACER_TOKEN"),
        (Broken("INTERNAL", "oh"), "the controller at host:1: oh"),
        (Broken("UNIMPLEMENTED", "eh?"), "UNIMPLEMENTED (eh?): is it a controller, and of this"),
        (FileError("it says so itself"), "it says so itself"),
    ],
    ids=["token file", "no token", "wrong token", "its words", "not a controller", "ours"],
)
def test_errors_name_what_to_look_at_on_one_line(error: Exception, said: str) -> None:
    text = str(told("host:1", error))
    assert said in text
    assert "\n" not in text
