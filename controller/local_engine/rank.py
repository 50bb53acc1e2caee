"""The process of one rank: ``python -m controller.local_engine.rank DESCRIPTOR RANK``.

It attends for the tokens of its own requests and computes the experts in its own slots for
everybody's. In a layer all ranks meet twice: when every token is where its experts find it, and
when every output is there. Meeting is a byte to each peer and one from each; whoever misses a peer
leaves the step and hangs up, so that the others do too. A rank ends with its engine.
"""

import socket
import sys

import numpy as np

from controller.local_engine.expert_map import ExpertMap, Replicas
from controller.local_engine.forward import Model, expert
from controller.local_engine.rank_messages import (
    Aborted,
    CopyPage,
    Digests,
    Holds,
    Link,
    Message,
    Piece,
    Report,
    Serve,
    Setup,
    Staged,
    Step,
    Stepped,
    receive,
    send,
)
from controller.local_engine.shared_memory import Memory
from controller.local_engine.weights import Float32
from placer import arrays
from placer.arrays import IntArray
from placer.placement import EMPTY


class Peers:
    """Sockets to the other ranks."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def link(self, engine: socket.socket, count: int) -> None:
        """Take the sockets that the engine made."""
        self.hang_up()
        if count:
            data, descriptors, _, _ = socket.recv_fds(engine, 1, count)
            if not data:
                raise EOFError
            self._sockets = [socket.socket(fileno=one) for one in descriptors]

    def meet(self) -> None:
        """Wait until all are here. Raises OSError or EOFError if one is gone."""
        for peer in self._sockets:
            peer.sendall(b"\0")
        for peer in self._sockets:
            if not peer.recv(1):
                raise EOFError

    def hang_up(self) -> None:
        for peer in self._sockets:
            peer.close()
        self._sockets = []


class Rank:
    """What a rank does, message by message."""

    served: ExpertMap
    replicas: Replicas

    def __init__(self, engine: socket.socket, setup: Setup) -> None:
        self.engine, self.rank, self.sizes = engine, setup.rank, setup.layout.sizes
        self.memory = Memory(setup.folder, setup.layout)
        self.model = Model(self.sizes, self.memory.dense, self.memory.cache[self.rank])
        self.peers = Peers()
        self.staged = Staged(0, "")

    def answer(self, message: Message) -> object:
        match message:
            case Step(pieces):
                return self._step(pieces)
            case CopyPage():
                return self._copy(message)
            case Digests(layer):
                return [self._digest(layer, slot) for slot in self._slots()]
            case Report():
                return Holds(self.served, self.staged)
            case Staged():
                self.staged = message
            case Serve(served):
                self.served, self.replicas = served, Replicas(served)
            case Link(count):
                self.peers.link(self.engine, count)
        return None

    def _slots(self) -> range:
        """Its own."""
        size = self.served.slots_per_rank
        return range(self.rank * size, (self.rank + 1) * size)

    def _step(self, pieces: tuple[Piece, ...]) -> Stepped | Aborted:
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
                outputs = self._dispatch(
                    layer, rows, self.replicas.choose(layer, chosen, positions)
                )
                x = self.model.combine(x, outputs, weights)
                experts[:, layer] = chosen
        except (OSError, EOFError):
            self.peers.hang_up()
            return Aborted()
        ends = np.cumsum([len(piece.tokens) for piece in pieces], dtype=np.int64)
        last = ends[[piece.samples for piece in pieces]] - 1
        return Stepped(self.model.next_tokens(x[last]).tolist(), experts)

    def _dispatch(self, layer: int, rows: Float32, slots: IntArray) -> Float32:
        """[tokens, top_k, hidden] what the experts in ``slots`` make of its tokens."""
        count, mine = len(rows), self.rank
        self.memory.states[mine, :count] = rows
        self.memory.slots[mine, :count] = slots
        self.memory.slots[mine, count:] = EMPTY
        self.peers.meet()
        self._compute(layer)
        self.peers.meet()
        return self.memory.outputs[mine, :count]

    def _compute(self, layer: int) -> None:
        """Everybody's tokens that are for its own slots."""
        memory, own = self.memory, self._slots()
        rank, token, choice = np.nonzero((memory.slots >= own.start) & (memory.slots < own.stop))
        slots = memory.slots[rank, token, choice]
        for slot in np.unique(slots):
            rows = np.flatnonzero(slots == slot)
            page = memory.pages[self.rank, layer, self.served.pages[layer, slot]]
            outputs = expert(memory.states[rank[rows], token[rows]], page)
            memory.outputs[rank[rows], token[rows], choice[rows]] = outputs

    def _copy(self, copy: CopyPage) -> str:
        own = self.memory.pages[self.rank, copy.layer, copy.page]
        own[:] = self.memory.pages[copy.source, copy.layer, copy.source_page]
        return arrays.digest(own)

    def _digest(self, layer: int, slot: int) -> str:
        if self.served.table[layer, slot] == EMPTY:
            return ""
        return arrays.digest(self.memory.pages[self.rank, layer, self.served.pages[layer, slot]])


def main(descriptor: int) -> None:
    with socket.socket(fileno=descriptor) as engine:
        try:
            rank = Rank(engine, receive(engine))
            while True:
                send(engine, rank.answer(receive(engine)))
        except (OSError, EOFError):
            return  # the engine is gone


if __name__ == "__main__":
    main(int(sys.argv[1]))
