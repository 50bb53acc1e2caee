"""Ledgers of tiny engines, by hand and against all ways that there are."""

from dataclasses import replace

import pytest

from placer.errors import PlacementError
from placer.placement import EMPTY, Placement
from placer.plan import Infeasible
from placer.resize import (
    NONE,
    Devices,
    Engine,
    Kind,
    Part,
    Seconds,
    Sequence,
    Speeds,
    resize,
)
from placer.topology import GB, Gpu, Link, Topology
from tests.builders import a_topology
from tests.resize.worlds import DENSE, DOWN, PAGE, UP, a_map, an_engine, by_kind, found, rows

# By hand


def test_a_new_rank_gets_copies_and_what_stays_is_kept_or_remapped() -> None:
    before = a_map([[[0, 1, 2], [3, 4, 5]]], experts=6)
    after = a_map([[[0, 2], [5, 3], [1, 4]]], experts=6)
    way = found(before, after, UP)
    # Experts 0 and 3 have the first slot still; 2 and 5 had the third, which is no more.
    assert rows(way, Kind.KEEP) == [(0, 0, 0, 0, 0), (3, 1, 1, 3, 2)]
    assert rows(way, Kind.REMAP) == [(2, 0, 0, 2, 1), (5, 1, 1, 5, 3)]
    assert rows(way, Kind.COPY) == [(1, 0, 2, 1, 4), (4, 1, 2, 4, 5)]
    assert rows(way, Kind.FREE) == [(1, 0, 0, 1, NONE), (4, 1, 1, 4, NONE)]
    assert way.after.physical_to_logical.tolist() == [[0, 2, 3, 5, 1, 4]]
    # Pages old and new: 3, 3 and 2.
    assert way.peak_bytes.tolist() == [300 + DENSE, 300 + DENSE, 200 + DENSE]
    assert (way.p2p_bytes, way.network_bytes, way.disk_bytes) == (200 + DENSE, 0, 0)


def test_departing_experts_go_to_the_survivors_before_their_pages_are_freed() -> None:
    before = a_map([[[0, 1], [2, 3], [0, 2]]])
    after = a_map([[[3, 2], [1, 0]]])
    way = found(before, after, DOWN)
    # GPU 0 keeps 0 and 1, GPU 1 keeps 2 and 3, whatever the target calls them: nothing is copied.
    assert by_kind(way) == {"KEEP": 4, "FREE": 2}
    assert rows(way, Kind.FREE) == [(0, 2, 2, 4, NONE), (2, 2, 2, 5, NONE)]
    other = found(before, after, replace(DOWN, after=(0, 2)))
    # GPU 0 keeps 0 and 1, GPU 2 keeps its 2 and gets 3 from GPU 1.
    assert rows(other, Kind.COPY) == [(3, 1, 2, 3, 2)]
    assert by_kind(other) == {"COPY": 1, "KEEP": 3, "FREE": 3}


def test_contents_keep_their_ranks_if_labels_may_not_change() -> None:
    before, after = a_map([[[0, 1], [2, 3]]]), a_map([[[2, 3], [0, 1]]])
    same = Devices(a_topology(2), (0, 1), (0, 1))
    assert by_kind(found(before, after, same)) == {"KEEP": 4}
    never = found(before, after, same, relabel="never")
    assert by_kind(never) == {"COPY": 4, "FREE": 4}
    assert never.after.physical_to_logical.tolist() == [[2, 3, 0, 1]]


def test_once_means_the_same_ranks_in_all_layers() -> None:
    before = a_map([[[0, 1], [2, 3]], [[0, 1], [2, 3]]])
    after = a_map([[[0, 1], [2, 3]], [[2, 3], [0, 1]]])
    same = Devices(a_topology(2), (0, 1), (0, 1))
    assert by_kind(found(before, after, same, relabel="once")) == {
        "COPY": 4, "KEEP": 4, "FREE": 4,
    }  # fmt: skip


def test_a_second_slot_of_a_device_shows_the_same_page() -> None:
    before = a_map([[[0, 1], [2, 3]]])
    way = found(before, a_map([[[0, 1, 0], [2, 3, 1]]]), Devices(a_topology(2), (0, 1), (0, 1)))
    assert rows(way, Kind.REMAP) == [(0, 0, 0, 0, 2)]
    assert rows(way, Kind.COPY) == [(1, 0, 1, 1, 5)]
    new = found(before, a_map([[[0, 1], [2, 3], [3, 3]]]), UP)
    assert rows(new, Kind.COPY) == [(3, 1, 2, 3, 4)]
    assert rows(new, Kind.REMAP) == [(3, 2, 2, NONE, 5)]


def test_an_expert_that_nobody_holds_is_read_once_and_copied_from_there() -> None:
    before = a_map([[[0, 1], [2, 3]]])
    after = a_map([[[0, 1, 2], [0, 2, 3]]])
    way = found(before, after, Devices(a_topology(3), (0, 1), (0, 2), dead=frozenset({1})))
    assert rows(way, Kind.LOAD) == [(2, NONE, 0, NONE, 2), (3, NONE, 2, NONE, 5)]
    assert rows(way, Kind.COPY) == [(0, 0, 2, 0, 3), (2, 0, 2, NONE, 4)]
    assert rows(way, Kind.FREE) == []
    assert way.disk_bytes == 2 * PAGE
    assert way.seconds.disk == pytest.approx(PAGE / Speeds().disk_bytes_per_s)
    assert way.peak_bytes[1] == 0


def test_what_a_disk_gives_faster_than_a_link_is_read() -> None:
    hardware = a_topology(4, 2)  # 25 and 225 GB/s are left by serving
    before, after = a_map([[[0, 1], [2, 3]]]), a_map([[[0], [2], [1], [3]]], nodes=2)
    up = Devices(hardware, (0, 1), (0, 1, 2, 3))
    fast = an_engine(speeds=Speeds(disk_bytes_per_s=26 * GB))
    assert by_kind(found(before, after, up)) == {"COPY": 2, "KEEP": 2, "FREE": 2}
    way = found(before, after, up, fast)
    assert by_kind(way) == {"LOAD": 2, "KEEP": 2, "FREE": 2}
    assert (way.p2p_bytes, way.disk_bytes) == (0, 2 * PAGE + 2 * DENSE)
    inside = found(before, replace(after, nodes=1), replace(up, hardware=a_topology(4)), fast)
    assert by_kind(inside) == {"COPY": 2, "KEEP": 2, "FREE": 2}


def test_dense_weights_come_from_the_nearest_and_no_source_sends_twice() -> None:
    up = Devices(a_topology(6, 2), (0, 1, 3), (0, 1, 2, 3, 4, 5))
    before = a_map([[[0, 1], [2, 3], [0, 2]]], nodes=1)
    with pytest.raises(PlacementError, match="its devices are not so"):
        found(before, a_map([[[0], [1], [2], [3], [0], [1]]], nodes=2), up)
    whole = Devices(a_topology(4, 2), (0, 2), (0, 1, 2, 3))
    way = found(a_map([[[0, 1], [2, 3]]], nodes=2), a_map([[[0], [1], [2], [3]]], nodes=2), whole)
    copies = [part[1:] for part in way.dense if part.kind == Kind.COPY]
    assert copies == [(0, 0, 1, DENSE), (0, 2, 3, DENSE)]
    assert [part.device for part in way.dense if part.kind == Kind.KEEP] == [0, 2]
    assert way.network_bytes == 0


def test_experts_come_from_whom_dense_weights_leave_idle() -> None:
    """Both old ranks hold everything. One sends ten pages' worth of dense weights: the other all
    four experts."""
    before, after = a_map([[[0, 1, 2, 3]] * 2]), a_map([[[0, 1, 2, 3]] * 3])
    way = found(before, after, UP)
    (dense,) = (part.source for part in way.dense if part.kind == Kind.COPY)
    assert {source for _, source, *_ in rows(way, Kind.COPY)} == {1 - dense}


def test_tensor_parallel_groups_come_and_go_as_a_whole_with_their_shards() -> None:
    up = Devices(a_topology(4), (0, 1), (0, 1, 2, 3), tp=2)
    way = found(a_map([[[0, 1], [2, 3]]]), a_map([[[0], [1], [2], [3]]]), up)
    copies = [part[1:] for part in way.dense if part.kind == Kind.COPY]
    assert copies == [(0, 0, 2, DENSE), (1, 1, 3, DENSE)]
    # Device 1 retires with device 0, which is dead, and cannot give shard 0.
    lost = Devices(a_topology(6), (0, 1, 2, 3), (2, 3, 4, 5), tp=2, dead=frozenset({0}))
    way = found(a_map([[[0], [1], [2], [3]]]), a_map([[[0], [1], [2], [3]]]), lost)
    copies = [part[1:] for part in way.dense if part.kind == Kind.COPY]
    assert copies == [(0, 2, 4, DENSE), (1, 1, 5, DENSE)]
    engine = an_engine(in_flight=(Sequence(0, 30), Sequence(1, 40)), kv_room=100)
    down = Devices(a_topology(4), (0, 1, 2, 3), (2, 3), tp=2)
    kv = found(a_map([[[0], [1], [2], [3]]]), a_map([[[0, 1], [2, 3]]]), down, engine).kv
    assert [part for part in kv if part.kind == Kind.COPY] == [
        Part(Kind.COPY, 0, 0, 2, 30),
        Part(Kind.COPY, 0, 1, 3, 30),
    ]


def test_sequences_of_retiring_ranks_go_to_the_emptiest_and_new_ranks_begin_without() -> None:
    before = a_map([[[0, 1], [2, 3], [0, 2]]])
    flying = (Sequence(0, 50), Sequence(2, 10), Sequence(2, 40), Sequence(1, 15))
    engine = an_engine(in_flight=flying, kv_room=60)
    way = found(before, a_map([[[0, 1], [2, 3]]]), DOWN, engine)
    # The largest first: 40 to GPU 1 with 15, then 10 to GPU 0 with 50. The other way round 40 would
    # find no room: GPU 0 has 50, and GPU 1 would have 25.
    assert [part[1:] for part in way.kv if part.kind == Kind.COPY] == [(1, 2, 0, 10), (2, 2, 1, 40)]
    assert [part.number for part in way.kv if part.kind == Kind.KEEP] == [0, 3]
    assert way.p2p_bytes == 50
    assert way.peak_bytes.tolist() == [200 + DENSE + 60] * 3
    up = found(
        a_map([[[0, 1], [2, 3]]]),
        a_map(
            [
                [
                    [0],
                    [1],
                    [
                        2,
                    ],
                    [3],
                ]
            ]
        ),
        Devices(a_topology(4), (0, 1), (0, 1, 2, 3)),
        an_engine(in_flight=flying[:1], kv_room=60),
    )
    assert [part.kind for part in up.kv] == [Kind.KEEP]


def test_seconds_are_the_busiest_devices_by_step() -> None:
    gpu = Gpu(1e12, 1e12, GB, 1e12)
    hardware = Topology("by hand", 4, 2, gpu, Link(1000, 0), Link(100, 0))
    speeds = Speeds(disk_bytes_per_s=10, page_s=1, attach_s=7, switch_s=3)
    engine = an_engine(dense_bytes=0, speeds=speeds, kv_room=50, in_flight=(Sequence(1, 50),))
    before = a_map([[[0, 1], [2, 3]]])
    after = a_map([[[0, 2], [1, 3]]], nodes=2)
    way = found(before, after, Devices(hardware, (0, 1), (0, 2)), engine)
    # GPU 2 gets 1 and 3 over the network, half of which serving leaves; GPU 0 gets 2 from GPU 1.
    assert rows(way, Kind.COPY) == [(2, 1, 0, 2, 1), (1, 0, 2, 1, 2), (3, 1, 2, 3, 3)]
    # KV has the whole network: GPU 0 is as empty and nearer, with ten times the rate.
    assert way.seconds == Seconds(disk=0, transfer=200 / 50, attach=7 + 2, switch=3 + 50 / 1000)
    assert way.seconds.total == pytest.approx(16.05)
    # The third slot of each is no more: one page a device shows in the second instead.
    moved = a_map([[[0, EMPTY, 1], [2, EMPTY, 3]]])
    remap = found(moved, before, Devices(hardware, (0, 1), (0, 1)), replace(engine, in_flight=()))
    assert by_kind(remap) == {"KEEP": 2, "REMAP": 2}
    assert remap.seconds == Seconds(disk=0, transfer=0, attach=7 + 1, switch=3)


# Refused


def test_pages_old_and_new_must_fit_together() -> None:
    before = a_map([[[0, 1], [2, 3]]])
    after = a_map([[[0, 2], [1, 3]]])
    same = Devices(a_topology(4), (0, 1), (0, 1))
    assert found(before, after, same, an_engine(capacity=300 + DENSE)).peak_bytes.max() == 1300
    no = resize(before, after, same, an_engine(capacity=299 + DENSE))
    assert no == Infeasible(
        "device 0 would hold 1.3e-06 GB at the switch, old and new pages together, and has"
        " 1.3e-06 GB: use more ranks, fewer slots a rank, or 1e-09 GB less for KV"
    )


@pytest.mark.parametrize(
    ("capacity", "would_do"),
    [
        (100 + DENSE, "use 4 ranks or more"),
        (99 + DENSE, "no width fits, not even one expert a layer on each device"),
    ],
)
def test_a_width_that_memory_does_not_allow_names_one_that_it_does(
    capacity: int, would_do: str
) -> None:
    before, after = a_map([[[0], [1], [2], [3]]]), a_map([[[0, 1], [2, 3]]])
    down = Devices(a_topology(4), (0, 1, 2, 3), (0, 1))
    no = resize(before, after, down, an_engine(capacity=capacity))
    assert isinstance(no, Infeasible)
    assert no.reason.endswith(would_do)


def test_no_width_of_too_few_devices_fits() -> None:
    before, after = a_map([[[0, 1], [2, 3]]]), a_map([[[0, 1, 2, 3]]])
    no = resize(
        before, after, Devices(a_topology(2), (0, 1), (0,)), an_engine(capacity=100 + DENSE)
    )
    assert isinstance(no, Infeasible)
    assert no.reason.endswith("4 ranks would fit, and there are 2 devices")


def test_sequences_that_nobody_has_room_for_are_refused() -> None:
    before, after = a_map([[[0, 1], [2, 3]]]), a_map([[[0, 1, 2, 3]]])
    engine = an_engine(in_flight=(Sequence(0, 40), Sequence(1, 30)), kv_room=60)
    no = resize(before, after, Devices(a_topology(2), (0, 1), (0,)), engine)
    assert isinstance(no, Infeasible)
    assert "3e-08 GB leave, 2e-08 GB are free" in no.reason
    assert no.reason.endswith("let requests finish first, or keep more ranks")


@pytest.mark.parametrize(
    ("after", "engine", "fault"),
    [
        (a_map([[[0, 1], [2, 2], [0, 1]]]), an_engine(), "no slot of layer 0 holds expert 3"),
        (a_map([[[0, 1], [2, 3]]]), an_engine(), "has 2 GPUs but there are 3 devices"),
        (a_map([[[0, 1], [2, 3], [4, 0]]], experts=5), an_engine(), "cannot become"),
        (
            a_map([[[0, 1], [2, 3], [0, 1]]]),
            an_engine(in_flight=(Sequence(2, 1),)),
            "group 2 but there are 2",
        ),
    ],
)
def test_what_cannot_be_is_an_error(after: Placement, engine: Engine, fault: str) -> None:
    with pytest.raises(PlacementError, match=fault):
        resize(a_map([[[0, 1], [2, 3]]]), after, UP, engine)


def test_a_sequence_on_a_dead_device_must_be_replayed() -> None:
    dead = Devices(a_topology(2), (0, 1), (0,), dead=frozenset({1}))
    engine = an_engine(in_flight=(Sequence(1, 1),), kv_room=9)
    with pytest.raises(PlacementError, match="its request must be replayed"):
        resize(a_map([[[0, 1], [2, 3]]]), a_map([[[0, 1, 2, 3]]]), dead, engine)
