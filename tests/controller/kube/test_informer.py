"""A cache is what the server has, whatever happens to lists and watches."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from controller.kube.cluster.api import ApiError
from controller.kube.cluster.informer import UNKNOWN_S, Informer
from controller.kube.objects import FLEETS
from placer.virtual_clock import VirtualClock
from tests.controller.kube.tiny_api import TinyApi


class World:
    def __init__(self, clock: VirtualClock) -> None:
        self.clock, self.api = clock, TinyApi()
        self.news: list[str] = []
        self.informer = Informer(
            self.api, FLEETS, "moe", clock, self._changed, lambda one: one  # type: ignore[arg-type]
        )  # fmt: skip

    def _changed(self, kind: Any, before: Any, after: Any) -> None:
        word = "new" if before is None else "gone" if after is None else "other"
        self.news.append(f"{word} {(after or before)['metadata']['name']}")

    @property
    def known(self) -> list[str]:
        return sorted(name for _, name in self.informer.objects)

    async def pass_by(self, seconds: float = 1.0) -> None:
        await self.clock.sleep(seconds)


def looked_at(test: Callable[[World], Coroutine[Any, Any, None]]) -> Any:
    def run() -> None:
        clock = VirtualClock()

        async def whole() -> None:
            world = World(clock)
            task = asyncio.create_task(world.informer.run())
            await test(world)
            task.cancel()

        clock.run(whole())

    run.__name__ = test.__name__
    return run


@looked_at
async def test_it_lists_page_by_page_and_watches_from_there(world: World) -> None:
    world.api.put("a")
    world.api.put("b")
    assert not world.informer.synced
    await world.pass_by()
    assert world.known == ["a", "b"]
    assert world.informer.synced
    assert world.api.asked == ["list", "watch from 2"]
    world.api.put("a", ranks=3)
    world.api.remove("b")
    await world.pass_by()
    assert world.news[2:] == ["other a", "gone b"]


@looked_at
async def test_after_a_watch_has_ended_it_goes_on_where_it_was(world: World) -> None:
    world.api.put("a")
    await world.pass_by()
    world.api.version = 9  # of other kinds' objects
    world.api.bookmark()
    world.api.end()
    await world.pass_by()
    assert world.api.asked == ["list", "watch from 1", "watch from 9"]


@looked_at
async def test_a_version_that_is_gone_is_listed_again_and_what_was_missed_is_news(
    world: World,
) -> None:
    world.api.put("a")
    world.api.put("b")
    await world.pass_by()
    del world.api.objects["a"]
    world.api.objects["b"]["spec"] = {"ranks": 2}
    world.api.objects = {name: dict(one) for name, one in world.api.objects.items()}
    world.api.end(ApiError(410, "too old"))
    await world.pass_by()
    assert world.api.asked[-2:] == ["list", "watch from 2"]
    assert world.known == ["b"]
    assert "gone a" in world.news


@looked_at
async def test_while_the_server_is_away_what_is_known_stays(world: World) -> None:
    world.api.put("a")
    await world.pass_by()
    world.api.refuses = [ApiError(0, "no answer")] * 3
    world.api.end(ApiError(0, "broke off"))
    await world.pass_by(0.05)
    assert world.known == ["a"]
    assert world.informer.synced
    await world.pass_by(10)
    world.api.put("b")
    await world.pass_by()
    assert world.known == ["a", "b"]


@looked_at
async def test_a_server_that_is_busy_is_left_alone_for_as_long_as_it_asks(world: World) -> None:
    world.api.refuses = [ApiError(429, "too many requests", retry_after_s=7.0)]
    await world.pass_by(6.9)
    assert world.api.asked == ["list"]
    await world.pass_by(0.2)
    assert world.api.asked[:2] == ["list", "list"]


@looked_at
async def test_a_kind_that_the_cluster_does_not_have_is_none_until_it_has(world: World) -> None:
    world.api.refuses = [ApiError(404, "no such kind")]
    await world.pass_by(1)
    assert world.informer.synced
    world.api.put("a")
    await world.pass_by(UNKNOWN_S)
    assert world.known == ["a"]


@looked_at
async def test_who_may_not_look_is_not_synced_and_says_why(world: World) -> None:
    world.api.refuses = [ApiError(403, "GET moefleets: forbidden")] * 2
    await world.pass_by(0.05)
    assert not world.informer.synced
    assert world.informer.condition == "GET moefleets: forbidden"


@looked_at
async def test_what_was_written_here_is_known_at_once_and_no_news(world: World) -> None:
    world.api.put("a")
    await world.pass_by()
    news = list(world.news)
    ours = {"metadata": {"name": "a", "namespace": "moe", "resourceVersion": "5"}, "spec": {}}
    world.informer.put(ours)
    world.api.put("a", ranks=9)  # version 2: older than what the server answered to us
    await world.pass_by()
    assert world.informer.objects["moe", "a"] == ours
    assert world.news == news


def written(name: str, version: int) -> Any:
    meta = {"name": name, "namespace": "moe", "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {"ranks": version}}


@looked_at
async def test_what_was_written_while_pages_of_a_list_came_is_not_lost_to_them(
    world: World,
) -> None:
    world.api.put("a")
    world.api.put("b")
    world.api.page_s = 1.0
    await world.pass_by(1.5)
    world.informer.put(written("a", 7))
    world.informer.put(written("c", 8))
    await world.pass_by()
    assert world.informer.objects["moe", "a"] == written("a", 7)
    assert world.known == ["a", "b", "c"]


@looked_at
async def test_an_answer_that_comes_after_the_objects_end_does_not_bring_it_back(
    world: World,
) -> None:
    world.api.put("a")
    await world.pass_by()
    answer = world.api.put("a", ranks=3)  # which is read only after the watch told what came next
    answer = {**answer, "metadata": dict(answer["metadata"])}
    world.api.remove("a")
    await world.pass_by()
    world.informer.put(answer)
    assert world.known == []


@looked_at
async def test_versions_that_went_back_are_the_servers(world: World) -> None:
    """Its etcd is that of a backup."""
    world.api.version = 100
    world.api.put("a")
    world.informer.put(written("b", 101))
    await world.pass_by()
    world.informer.put(written("a", 102))
    world.api.version, world.api.objects = 4, {}
    world.api.put("a", ranks=1)
    world.api.end(ApiError(410, "too old"))
    await world.pass_by()
    assert world.informer.objects["moe", "a"]["spec"] == {"ranks": 1}
    assert world.known == ["a"]


@pytest.mark.parametrize("error", [ApiError(500, "etcd"), ApiError(0, "no answer")])
def test_tries_come_more_and_more_seldom(error: ApiError) -> None:
    clock = VirtualClock()

    async def whole() -> None:
        world = World(clock)
        world.api.refuses = [error] * 1000
        task = asyncio.create_task(world.informer.run())
        await world.pass_by(600)
        assert 30 < len(world.api.asked) < 70
        task.cancel()

    clock.run(whole())
