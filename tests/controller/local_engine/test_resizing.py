"""Another width while requests are served: tokens are those of an engine that is left alone."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from controller.elastic.hmm import Report
from controller.local_engine.local_engine import LocalEngine
from controller.migration.commands import (
    Agree,
    Command,
    Discard,
    Done,
    Refused,
    Release,
    Stage,
    Switch,
    Transfer,
    Verify,
)
from placer.memory.keeper import Drop
from placer.placement import EMPTY, Placement, linear
from tests.controller.local_engine.tiny_engine import (
    EXPERTS,
    LAYERS,
    MODEL,
    PROMPTS,
    beside,
    eventually,
    everybody,
    generate,
    insist,
    kill,
    runs,
)


def spread(ranks: int) -> Placement:
    """As many slots on each as the experts need; what is over holds replicas."""
    return linear(LAYERS, -(-EXPERTS // ranks) * ranks, EXPERTS, ranks)


def to(engine: LocalEngine, after: Placement, epoch: int) -> Iterator[Command]:
    yield Stage(epoch, engine.placement, after)
    yield Agree(epoch)
    yield Transfer(epoch)
    yield Switch(epoch)
    yield Release(epoch)
    yield Verify(epoch, after.digest)


def resize(engine: LocalEngine, after: Placement, epoch: int = 1) -> list[Done]:
    return [insist(engine, command) for command in to(engine, after, epoch)]


def tables(engine: LocalEngine) -> list[dict[int, int]]:
    """By rank: what the arena's page table says of its pages, layer * experts + expert."""
    found = []
    for device in engine.order:
        held = engine.devices.ask(device, Report()).table
        found.append({page: entry for page, entry in enumerate(held) if entry >= 0})
    return found


def served(engine: LocalEngine) -> list[dict[int, int]]:
    """By rank: what its pages hold by the map."""
    return [
        {one.page: one.layer * EXPERTS + one.expert for one in engine.served.filled(rank)}
        for rank in range(engine.placement.gpus)
    ]


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(MODEL, 2, smallest=2, standbys=2, spares=2) as engine:
        yield engine


def test_streams_go_on_through_every_width(engine: LocalEngine) -> None:
    undisturbed = generate(engine, PROMPTS, 120)
    requests = [engine.submit(prompt, 120) for prompt in PROMPTS]
    next(iter(requests[0]))
    for epoch, ranks in enumerate((3, 4, 3, 2), 1):
        resize(engine, spread(ranks), epoch)
        assert engine.placement.digest == spread(ranks).digest
        assert len(engine.pids()) == ranks
        assert tables(engine) == served(engine)
    assert [request.tokens() for request in requests] == undisturbed
    assert engine.status.restarts == 0


def test_only_what_a_device_lacks_is_copied(engine: LocalEngine) -> None:
    """3 ranks of 6 slots: the new one needs 4 experts and two replicas of each layer, the second,
    which had 8 to 15, has 8 to 11 of its 6 to 11, and the first keeps its own."""
    *_, transferred, switched, _, _ = resize(engine, spread(3))
    pages = LAYERS * ((4 + 2) + 2)
    layout = engine.devices.layout
    assert transferred.copied_bytes == pages * layout.page_size + layout.dense_size
    assert switched.copied_bytes == 0  # no sequence was there


def test_experts_that_do_not_divide_leave_slots_empty(engine: LocalEngine) -> None:
    table = np.full((LAYERS, 18), EMPTY)
    table[:, :16] = np.arange(16)
    before = generate(engine, PROMPTS[:3], 20)
    resize(engine, Placement(table, EXPERTS, 3))
    assert generate(engine, PROMPTS[:3], 20) == before


def test_every_command_of_a_resize_may_come_twice(engine: LocalEngine) -> None:
    before = generate(engine, PROMPTS[:2], 20)
    for command in to(engine, spread(3), 1):
        insist(engine, command)
        if not isinstance(command, Stage):
            insist(engine, command)
    assert tables(engine) == served(engine)
    assert generate(engine, PROMPTS[:2], 20) == before


@pytest.mark.parametrize("done", range(4))
def test_until_the_switch_there_is_a_way_back(engine: LocalEngine, done: int) -> None:
    home, pids = engine.placement.digest, engine.pids()
    before = generate(engine, PROMPTS[:2], 20)
    commands = list(to(engine, spread(3), 1))
    for command in commands[:done]:
        insist(engine, command)
    insist(engine, Discard(1))
    assert (engine.placement.digest, engine.pids()) == (home, pids)
    assert tables(engine) == served(engine)
    assert generate(engine, PROMPTS[:2], 20) == before
    resize(engine, spread(3), 2)  # and another try


def test_what_cannot_be_is_refused_and_leaves_nothing(engine: LocalEngine) -> None:
    home = engine.placement
    for after, why in (
        (
            spread(1),
            "device 0 has 60 pages, too few for what it serves and what it is to",
        ),
        (Placement(home.physical_to_logical[:3], EXPERTS, 2), "the change leads to 3 layers"),
    ):
        refused = engine.carry_out(Stage(1, home, after))
        assert isinstance(refused, Refused)
        assert why in refused.reason
    assert "transfer first" in _refusal(engine, [Stage(2, home, spread(3)), Switch(2)])
    assert "switch first" in _refusal(engine, [Release(2)])
    insist(engine, Discard(2))
    assert "nothing is" in _refusal(engine, [Transfer(2)])
    assert tables(engine) == served(engine)


def _refusal(engine: LocalEngine, commands: list[Command]) -> str:
    *first, last = commands
    for command in first:
        insist(engine, command)
    refused = engine.carry_out(last)
    assert isinstance(refused, Refused)
    return refused.reason


def test_whoever_dies_meanwhile_is_not_missed(engine: LocalEngine) -> None:
    """Ranks, standbys, memory processes and the keeper, one after another: a keeper and a memory
    process that are dead at once lose a device, which is another claim."""
    undisturbed = generate(engine, PROMPTS[:4], 150)
    requests = [engine.submit(prompt, 150) for prompt in PROMPTS[:4]]
    turns = count()

    def kill_one() -> None:
        memory = engine.devices.pids().values()
        if not all(map(runs, memory)) or engine.devices.kept != set(engine.devices):
            return
        pids = [*engine.pids(), *memory, *engine.standbys()]
        kill(pids[next(turns) * 5 % len(pids)])

    with beside(kill_one, pause_s=0.5):
        for epoch in range(1, 5):
            after = spread(3 if epoch % 2 else 2)
            for command in to(engine, after, epoch):
                insist(engine, command)
            assert engine.placement.digest == after.digest
    assert [request.tokens() for request in requests] == undisturbed
    assert eventually(lambda: tables(engine) == served(engine))


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_that_dies_before_the_switch_leaves_nobody_behind(ranks: int) -> None:
    """Neither whom the old group alone needs, nor whom the new one got in its place."""
    others = children()
    with LocalEngine(MODEL, 3, 18, smallest=2, standbys=1, spares=1) as engine:
        undisturbed = generate(engine, PROMPTS[:4], 80)
        requests = [engine.submit(prompt, 80) for prompt in PROMPTS[:4]]
        for command in to(engine, spread(ranks), 1):
            if isinstance(command, Switch | Release):
                kill(engine.pids()[0])
            insist(engine, command)
        assert [request.tokens() for request in requests] == undisturbed
        assert tables(engine) == served(engine)
        assert eventually(lambda: len(engine.standbys()) == 1)
        assert children() - others == {*everybody(engine), *engine.standbys()}
        assert len(list(engine.devices)) <= ranks + 1


def children() -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and "python" in (folder / "cmdline").read_text():
                found.add(int(folder.name))
    return found


def test_a_busy_engine_looks_after_its_keeper(engine: LocalEngine) -> None:
    """Who waits until nobody serves loses a device with the next death."""
    undisturbed = generate(engine, PROMPTS[:4], 200)
    requests = [engine.submit(prompt, 200) for prompt in PROMPTS[:4]]
    for name in ("the keeper", "hmm-0", "the keeper", "hmm-1"):
        pid = engine.devices.pids()[name]
        kill(pid)
        assert eventually(partial(_is_back, engine, name, pid))
    assert [request.tokens() for request in requests] == undisturbed
    assert (engine.placement.gpus, engine.order) == (2, [0, 1])


def _is_back(engine: LocalEngine, name: str, dead: int) -> bool:
    devices = engine.devices
    return devices.pids()[name] != dead and devices.kept == set(devices)


def test_a_spare_device_that_is_lost_is_not_missed(engine: LocalEngine) -> None:
    before = generate(engine, PROMPTS[:2], 20)
    engine.devices._ask_keeper(Drop(engine.devices.name(3)))
    kill(engine.devices.pids()["hmm-3"])
    assert eventually(lambda: 3 not in engine.devices)
    assert generate(engine, PROMPTS[:2], 20) == before
    for epoch, ranks in enumerate((3, 4), 1):  # and another comes in its place
        resize(engine, spread(ranks), epoch)
    assert generate(engine, PROMPTS[:2], 20) == before


def lose(engine: LocalEngine, rank: int) -> None:
    """The rank, its memory process, and all that is left of its arena."""
    device = engine.order[rank]
    engine.devices._ask_keeper(Drop(engine.devices.name(device)))
    for pid in (engine.devices.pids()[f"hmm-{device}"], engine.pids()[rank]):
        kill(pid)


def test_when_a_device_is_lost_the_others_take_over() -> None:
    """Its experts are read from the checkpoint, and its requests computed again."""
    with LocalEngine(MODEL, 3, 18, smallest=2, standbys=1) as engine:
        undisturbed = generate(engine, PROMPTS[:6], 80)
        requests = [engine.submit(prompt, 80) for prompt in PROMPTS[:6]]
        next(iter(requests[0]))
        lose(engine, 1)
        assert [request.tokens() for request in requests] == undisturbed
        assert engine.placement.gpus == 2
        assert not engine.placement.lost
        assert tables(engine) == served(engine)
        home = engine.placement.physical_to_logical.reshape(LAYERS, 2, -1)
        more = np.concatenate([home[:, :, :9], home[:, :1, :9]], axis=1)  # as the first has it
        resize(engine, Placement(more.reshape(LAYERS, -1), EXPERTS, 3))
        assert generate(engine, PROMPTS[:6], 80) == undisturbed


def test_without_room_for_its_experts_another_device_comes(engine: LocalEngine) -> None:
    undisturbed = generate(engine, PROMPTS[:4], 60)
    requests = [engine.submit(prompt, 60) for prompt in PROMPTS[:4]]
    next(iter(requests[0]))
    lose(engine, 0)
    assert [request.tokens() for request in requests] == undisturbed
    assert (engine.placement.gpus, engine.order) == (2, [2, 1])


def test_a_checkpoint_that_changed_is_not_served(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    with LocalEngine(tmp_path / "model", 3, 18, smallest=2) as engine:
        generate(engine, PROMPTS[:1], 5)
        weights = tmp_path / "model" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-200_000:] = os.urandom(200_000)
        weights.write_bytes(data)
        lose(engine, 1)
        assert eventually(partial(_has_ended, engine))
        request = engine.submit(PROMPTS[0], 5) if not _has_ended(engine) else None
        assert request is None


def _has_ended(engine: LocalEngine) -> bool:
    return "is not what was loaded: the checkpoint changed" in engine.over
