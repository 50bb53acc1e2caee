"""The process of one rank.

It attends for the tokens of its own requests and computes the experts in its own slots for
everybody's. In a layer all ranks meet twice: when every token is where its experts find it, and
when every output is there. Meeting is a byte to each peer and one from each; whoever misses a peer
leaves the step and hangs up, so that the others do too. A rank ends with its engine.

Without memory it is a standby: all that takes long to start is there, and no weights.
"""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from controller.elastic.arena import Layout
from controller.local_engine.expert_map import ExpertMap, Replicas
from controller.local_engine.model.forward import Model, expert
from controller.local_engine.model.weights import Float32, dense_of
from controller.local_engine.ranks.exchange import Exchange, seat_shape
from controller.local_engine.ranks.messages import (
    Aborted,
    Attach,
    Bind,
    Detach,
    Forget,
    Holds,
    Message,
    Piece,
    Prepare,
    Report,
    Setup,
    Staged,
    Step,
    Stepped,
    Switch,
)
from placer.arrays import IntArray
from placer.clock import Readings, SystemClock
from placer.memory.memfd import Memfd
from placer.memory.process import NEVER, answer
from placer.memory.ranges import Range
from placer.placement import EMPTY

DEVICE = Memfd()


class Group:
    """Ranks that step together, as one of them sees it: sockets to the others, and the memory that
    they share. waited_s: in all meetings"""

    def __init__(self, exchange: Exchange, peers: Sequence[int], clock: Readings) -> None:
        self.exchange, self._clock, self.waited_s = exchange, clock, 0.0
        self._peers = [socket.socket(fileno=os.dup(one)) for one in peers]

    def meet(self, awake: bool) -> None:
        """Wait until all are here. Raises OSError or EOFError if one is gone."""
        begun_s = self._clock.monotonic()
        for peer in self._peers:
            peer.sendall(b"\0")
        for peer in self._peers:
            if not _heard(peer, awake):
                raise EOFError
        self.waited_s += self._clock.monotonic() - begun_s

    def hang_up(self) -> None:
        for peer in self._peers:
            peer.close()

    def close(self) -> None:
        self.hang_up()
        self.exchange.close()


def _heard(peer: socket.socket, awake: bool) -> bytes:
    """One who sleeps is woken late, and computes slowly at first."""
    while awake:
        with suppress(BlockingIOError):
            return peer.recv(1, socket.MSG_DONTWAIT)
    return peer.recv(1)


@dataclass(eq=False)
class Serving:
    """What steps go by. experts: the weights in its own slots, layer by layer"""

    served: ExpertMap
    rank: int
    group: Group
    experts: Range

    def __post_init__(self) -> None:
        self.replicas = Replicas(self.served)
        size = self.served.slots_per_rank
        self.slots = range(self.rank * size, (self.rank + 1) * size)


class Memory:
    """One arena, as its rank sees it."""

    def __init__(self, layout: Layout, arena: int) -> None:
        self.layout, self.descriptor = layout, os.dup(arena)
        self.dense = Range(DEVICE, [layout.dense(self.descriptor)])
        self.cache = Range(DEVICE, [layout.cache(self.descriptor)])

    def experts(self, served: ExpertMap, rank: int) -> Range:
        """The pages of a rank's slots, in their order; an empty slot shows any page."""
        pages = served.pages_of(rank).ravel()
        return Range(DEVICE, [self.layout.page(self.descriptor, page) for page in pages.tolist()])

    def close(self) -> None:
        self.dense.close()
        self.cache.close()
        os.close(self.descriptor)


class Rank:
    """What a rank does, message by message."""

    memory: Memory | None = None
    serving: Serving | None = None
    prepared: Serving | None = None
    staged = Staged(0, "")
    is_bound = False

    def reply(self, message: Message, descriptors: list[int]) -> tuple[object, Sequence[int]]:
        match message:
            case Step(pieces):
                return self._step(pieces), ()
            case Setup(sizes, pace):
                self.sizes, self.pace, self.clock = sizes, pace, SystemClock()
                self.model = Model(sizes)
            case Bind(core):
                os.sched_setaffinity(0, {core})
                self.is_bound = True
            case Attach(layout):
                self._attach(layout, descriptors[0])
            case Prepare():
                self._prepare(message, descriptors)
            case Switch():
                self._switch()
            case Forget():
                self._forget()
            case Detach():
                self._detach()
            case Report():
                assert self.serving is not None
                return Holds(self.serving.served, self.staged), ()
            case Staged():
                self.staged = message
        return None, ()

    def _attach(self, layout: Layout, arena: int) -> None:
        self.memory = memory = Memory(layout, arena)
        self.model.dense = dense_of(memory.dense.array(np.float32), self.sizes)
        shape = seat_shape(self.sizes)
        seats = memory.cache.array(np.float32).reshape(layout.seats, -1)
        self.model.cache = seats[:, : np.prod(shape)].reshape(layout.seats, *shape)

    def _detach(self) -> None:
        self._forget()
        if self.serving is not None:
            self.serving.group.close()
            self.serving.experts.close()
        if self.memory is not None:
            del self.model.dense, self.model.cache
            self.memory.close()
        self.serving, self.memory, self.staged = None, None, Staged(0, "")

    def _prepare(self, message: Prepare, descriptors: list[int]) -> None:
        self._forget()
        assert self.memory is not None
        if message.group:
            exchange, *peers = descriptors
            shared = Exchange(DEVICE, exchange, self.sizes, message.group)
            group = Group(shared, peers, self.clock)
        else:
            assert self.serving is not None
            group = self.serving.group
        experts = self.memory.experts(message.served, message.rank)
        self.prepared = Serving(message.served, message.rank, group, experts)

    def _switch(self) -> None:
        last, self.serving, self.prepared = self.serving, self.prepared, None
        assert self.serving is not None
        if last is not None:
            last.experts.close()
            if last.group is not self.serving.group:
                last.group.close()

    def _forget(self) -> None:
        if self.prepared is not None:
            self.prepared.experts.close()
            if self.serving is None or self.prepared.group is not self.serving.group:
                self.prepared.group.close()
        self.prepared = None

    def _step(self, pieces: tuple[Piece, ...]) -> Stepped | Aborted:
        assert self.serving is not None
        begun_s, waited_s = self.clock.monotonic(), self.serving.group.waited_s
        places = [
            (token, piece.seat, position)
            for piece in pieces
            for position, token in enumerate(piece.tokens, piece.start)
        ]
        tokens, seats, positions = np.array(places, dtype=np.int64).reshape(-1, 3).T
        experts = np.empty((len(tokens), self.sizes.layers, self.sizes.top_k), dtype=np.int32)
        x = self.model.embed(tokens)
        try:
            for layer in range(self.sizes.layers):
                x = self.model.attend(layer, x, seats, positions)
                rows, chosen, weights = self.model.route(layer, x)
                slots = self.serving.replicas.choose(layer, chosen, positions)
                x = self.model.combine(x, self._dispatch(self.serving, layer, rows, slots), weights)
                experts[:, layer] = chosen
        except (OSError, EOFError):
            self.serving.group.hang_up()
            return Aborted()
        ends = np.cumsum([len(piece.tokens) for piece in pieces], dtype=np.int64)
        last = ends[[piece.samples for piece in pieces]] - 1
        sums = [crc32(row.tobytes()) for row in x[last]]
        waited_s = self.serving.group.waited_s - waited_s
        found = Stepped(self.model.next_tokens(x[last]).tolist(), sums, experts, waited_s)
        if self.pace is not None:
            due_s = begun_s + self.pace.step_s + self.pace.token_s * len(tokens)
            self.clock.wait(NEVER, max(due_s - self.clock.monotonic(), 0.0))
        return found

    def _dispatch(self, serving: Serving, layer: int, rows: Float32, slots: IntArray) -> Float32:
        """[tokens, top_k, hidden] what the experts in ``slots`` make of its tokens."""
        exchange, count, mine = serving.group.exchange, len(rows), serving.rank
        exchange.states[mine, :count] = rows
        exchange.slots[mine, :count] = slots
        exchange.slots[mine, count:] = EMPTY
        serving.group.meet(self.is_bound)
        self._compute(serving, layer)
        serving.group.meet(self.is_bound)
        return exchange.outputs[mine, :count]

    def _compute(self, serving: Serving, layer: int) -> None:
        """Everybody's tokens that are for its own slots."""
        assert self.memory is not None
        exchange, own = serving.group.exchange, serving.slots
        stride, page = self.memory.layout.page_stride // 4, self.sizes.page
        weights = serving.experts.array(np.float32).reshape(-1, stride)[:, :page]
        rank, token, choice = np.nonzero(
            (exchange.slots >= own.start) & (exchange.slots < own.stop)
        )
        slots = exchange.slots[rank, token, choice]
        for slot in np.unique(slots):
            rows = np.flatnonzero(slots == slot)
            outputs = expert(
                exchange.states[rank[rows], token[rows]],
                weights[layer * len(own) + slot - own.start],
            )
            exchange.outputs[rank[rows], token[rows], choice[rows]] = outputs


def main(descriptor: int) -> None:
    answer(descriptor, Rank().reply)
