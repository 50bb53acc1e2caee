"""Requests, and which of their tokens the ranks compute next."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from controller.local_engine.meter import Meter
from controller.local_engine.model.weights import Sizes
from controller.local_engine.ranks.exchange import CHUNK, SEATS
from controller.local_engine.ranks.messages import Piece, Stepped
from controller.samples import Sample
from placer.clock import Readings
from placer.errors import PlacerError


class RequestError(PlacerError):
    """A request that the engine cannot serve."""


class Request:
    """Iterating gives the tokens that are generated, as they come.

    name:  of whoever sent it, for what is sampled of it
    rank:  that it is for; -1 for any, as it is for any once there is no such rank
    error: why it ended early; empty if it did not
    generated: the tokens that there are
    longest_gap_s: between two of its tokens
    sums:  by token, of the hidden state that it was chosen from, to the last bit: what went before
           was computed alike, also where all tokens are the same
    """

    def __init__(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        clock: Readings,
        name: str = "",
        rank: int = -1,
    ) -> None:
        self.prompt, self.max_tokens, self._clock = tuple(prompt), max_tokens, clock
        self.name, self.rank = name, rank
        self.error = ""
        self.longest_gap_s = 0.0
        self.sums: list[int] = []
        self.generated: list[int] = []
        self._came_s = clock.monotonic()  # it, and then its last token
        self._news = threading.Condition()
        self._tell: Callable[[], object] | None = None

    def __iter__(self) -> Iterator[int]:
        for at in count():
            with self._news:
                while len(self.generated) == at:
                    if self.done:
                        return
                    self._news.wait()
            yield self.generated[at]

    def tokens(self) -> list[int]:
        """All of them; waits for the last."""
        return list(self)

    def tell(self, tell: Callable[[], object]) -> None:
        """Have it called, on the engine's thread, whenever there is news."""
        with self._news:
            self._tell = tell

    @property
    def done(self) -> bool:
        return bool(self.error) or len(self.generated) == self.max_tokens

    @property
    def so_far(self) -> tuple[int, ...]:
        """Prompt and tokens."""
        return self.prompt + tuple(self.generated)

    def add(self, token: int, checksum: int) -> float:
        """Seconds since the request, or since its last token."""
        now_s = self._clock.monotonic()
        with self._news:
            took_s = now_s - self._came_s
            if self.generated:
                self.longest_gap_s = max(self.longest_gap_s, took_s)
            self._came_s = now_s
            self.sums.append(checksum)
            self.generated.append(token)
            self._notify()
        return took_s

    def fail(self, error: str) -> None:
        """Whatever is still to come is not computed."""
        with self._news:
            self.error = error
            self._notify()

    def _notify(self) -> None:
        self._news.notify_all()
        if self._tell is not None:
            self._tell()


def checked(
    prompt: Sequence[int], max_tokens: int, sizes: Sizes, clock: Readings, name: str, rank: int
) -> Request:
    """Raises RequestError for what cannot be served."""
    if max_tokens < 1:
        raise RequestError(f"max_tokens is {max_tokens}: ask for 1 or more")
    if len(prompt) == 0:
        raise RequestError("the prompt has 0 tokens: give 1 or more")
    for token in prompt:
        if not 0 <= token < sizes.vocab:
            raise RequestError(
                f"token {token} is outside 0..{sizes.vocab - 1}: use the model's ids"
            )
    if len(prompt) + max_tokens > sizes.context:
        raise RequestError(
            f"{len(prompt)} prompt tokens and max_tokens {max_tokens} exceed the context of"
            f" {sizes.context}: shorten one of them"
        )
    return Request(prompt, max_tokens, clock, name, rank)


@dataclass(slots=True, eq=False)
class Running:
    """A request with a seat. ``computed``: its tokens whose keys and values are in the cache"""

    name: str
    request: Request
    rank: int
    seat: int
    computed: int = 0

    def piece(self, limit: int) -> Piece:
        """Its next tokens, at most ``limit`` of them."""
        tokens = self.request.so_far
        end = min(self.computed + limit, len(tokens))
        return Piece(self.seat, self.computed, tokens[self.computed : end], end == len(tokens))

    @property
    def decodes(self) -> bool:
        return self.computed >= len(self.request.prompt)


class Move(NamedTuple):
    """A request that goes on elsewhere: rank and seat there, as of the width before, and here."""

    running: Running
    rank: int
    seat: int
    to: int
    to_seat: int


Plan = list[list[tuple[Running, Piece]]]


class Batch:
    """Continuous batching: requests sit down when there is a seat, and leave when they are done.

    Each rank decodes one token of each of its requests in a step, and beside that computes CHUNK
    tokens of prompts, first come first served.
    """

    def __init__(self, ranks: int) -> None:
        self.waiting: deque[Request] = deque()
        self.meter = Meter()
        self._running: list[list[Running]] = [[] for _ in range(ranks)]
        self._names = count()

    @property
    def running(self) -> int:
        return sum(map(len, self._running))

    def admit(self) -> list[Running]:
        """Who sits down now: each where it is to, or where the fewest are."""
        admitted, waiting = [], deque[Request]()
        for request in self.waiting:
            if request.done:  # whoever sent it hung up
                continue
            rank = request.rank
            if not 0 <= rank < len(self._running):
                rank = min(range(len(self._running)), key=lambda one: len(self._running[one]))
            here = self._running[rank]
            if len(here) == SEATS:
                waiting.append(request)
                continue
            seat = min(set(range(SEATS)) - {one.seat for one in here})
            name = f"{next(self._names)}-{request.name}"
            admitted.append(Running(name, request, rank, seat))
            here.append(admitted[-1])
        self.waiting = waiting
        return admitted

    def plan(self) -> Plan:
        """The next step of each rank. Nothing changes until ``advance``."""
        step: Plan = []
        for here in self._running:
            left, pieces = CHUNK, []
            for one in here:
                if one.decodes:
                    pieces.append((one, one.piece(1)))
                elif left:
                    piece = one.piece(left)
                    pieces.append((one, piece))
                    left -= len(piece.tokens)
            step.append(pieces)
        return step

    def advance(self, step: Plan, answers: Sequence[Stepped]) -> list[Running]:
        """Take in what a step computed. Returns those who are done."""
        done = []
        for rank, (pieces, answer) in enumerate(zip(step, answers, strict=True)):
            new = iter(zip(answer.next_tokens, answer.sums, strict=True))
            for one, piece in pieces:
                is_prompt = not one.decodes
                one.computed += len(piece.tokens)
                if is_prompt:
                    self.meter.prefill(len(piece.tokens))
                if piece.samples:
                    self.meter.token(is_prompt, one.request.add(*next(new)))
                if one.request.done:
                    self.meter.finish(len(one.request.prompt))
                    self._running[rank].remove(one)
                    done.append(one)
        return done

    def moves(self, ranks: int) -> list[Move]:
        """Who must go elsewhere if there are so many ranks, or does so that new ones have work:
        each where the fewest are. Who finds no seat is not among them. Nothing changes yet."""
        there = [list(here) for here in self._running[:ranks]]
        there += [[] for _ in range(ranks - len(there))]
        leaving = [one for here in self._running[ranks:] for one in here]
        for new in range(len(self._running), ranks):
            while len(fullest := max(there, key=len)) > len(there[new]) + 1:
                leaving.append(fullest.pop())
                there[new].append(leaving[-1])
        found, taken = [], [{one.seat for one in here} for here in there]
        for at in range(len(self._running), ranks):
            taken[at] = set()
        for one in leaving:
            to = next((at for at, here in enumerate(there) if one in here), None)
            if to is None:
                to = min(range(ranks), key=lambda at: len(there[at]))
                if len(there[to]) == SEATS:
                    continue
                there[to].append(one)
            seat = min(set(range(SEATS)) - taken[to])
            taken[to].add(seat)
            found.append(Move(one, one.rank, one.seat, to, seat))
        return found

    def resize(self, ranks: int, moves: Iterable[Move]) -> None:
        """Who is moved goes on where that leads; who has no seat any more begins again, and comes
        to the same."""
        every = [one for here in self._running for one in here]
        for move in moves:
            move.running.rank, move.running.seat = move.to, move.to_seat
        self._running = [[] for _ in range(ranks)]
        for one in every:
            if one.rank < ranks:
                self._running[one.rank].append(one)
            else:
                self.waiting.appendleft(one.request)

    def lose(self, gone: Collection[int], left: int) -> None:
        """The keys and values of these ranks are gone, and their requests begin again. If fewer
        ranks are left, those take the numbers."""
        here = self._running
        self.waiting.extendleft(one.request for rank in gone for one in here[rank])
        for rank in gone:
            here[rank] = []
        if left < len(here):
            self._running = [several for rank, several in enumerate(here) if rank not in gone]
        for rank, several in enumerate(self._running):
            for one in several:
                one.rank = rank

    def by_rank(self) -> dict[str, list[int]]:
        """Requests that run, and that wait; those that wait for any rank are the first's."""
        running = [len(here) for here in self._running]
        waiting = [0] * len(running)
        for request in self.waiting:
            waiting[request.rank if 0 <= request.rank < len(waiting) else 0] += 1
        return {"running": running, "waiting": waiting}

    @property
    def sample(self) -> Sample:
        """What its metrics say. Of KV there is as much as there are seats."""
        seats = SEATS * len(self._running)
        return self.meter.sample(self.running, len(self.waiting), self.running / seats)

    def fail_all(self, error: str) -> None:
        for request in (*self.waiting, *(one.request for here in self._running for one in here)):
            request.fail(error)
        self.waiting.clear()
        for here in self._running:
            here.clear()
