"""The engines of one pool, request by request; kernels.py says how they serve."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from controller.samples import GAP_BOUNDS, TTFT_BOUNDS, Histogram, Sample
from simulations import caches, kernels
from simulations.arrivals import Arrivals, Prefixes
from simulations.caches import NOWHERE
from simulations.kernels import GRID, NEVER, NOBODY, SEATS
from simulations.state import Speeds, State


class Serving:
    """The engines of one pool. widest: ranks that one may have; cut: requests that had begun to
    answer when their engine was lost

    Time goes on when ``advance`` is called, and is then the same for all.
    """

    def __init__(
        self,
        arrivals: Arrivals,
        engines: int,
        ranks: int,
        widest: int,
        speeds: Speeds,
        every: int = 1,
    ) -> None:
        """every: one of so many requests is placed by who asks, and heard of; the others go to the
        emptiest engine's emptiest rank, and steps in which none comes or leaves are one formula."""
        self.speeds, self.widest, self.every = speeds, widest, every
        self.cut = 0
        requests, places = len(arrivals), engines * widest

        def some(names: str, *shape: int, value: float = 0, kind: type = np.int64) -> Any:
            return {name: np.full(shape, value, kind) for name in names.split()}

        self.state = State(
            at_s=arrivals.at_s,
            prompt=arrivals.prompt.astype(
                np.int32, copy=False
            ),  # four bytes: there may be 50 million
            output=arrivals.output.astype(np.int32, copy=False),
            **some("ends", requests, kind=np.int32),
            **some("first_s last_s", requests, value=np.inf, kind=float),
            **some("following rank", requests, value=NOBODY, kind=np.int32),
            **some("begun_s end_s each_s more_s pause_s busy_s", engines, kind=float),
            **some("slow", engines, value=1, kind=float),
            **some("ranks wanted", engines, value=ranks),
            **some("busy many closed steps prefilled decoded finished prompts", engines),
            **some("table", engines, GRID, kind=float),
            **some("seated begun kv context progress chunk queued", places),
            **some("head tail", places, value=NOBODY),
            **some("due", places, value=NEVER),
            **some("running", places, SEATS),
            **some("ttft", engines, len(TTFT_BOUNDS) + 1, kind=float),
            **some("gaps", engines, len(GAP_BOUNDS) + 1, kind=float),
            **some("hits", engines),
            **_caches(arrivals, places),
            **some("events", 2 * (requests // every + 1), 2),
        )

    def advance(self, until: float) -> Sequence[Sequence[int]]:
        """What came of requests until then: BEGAN or ENDED, and which."""
        kernels.advance(self.state, until, until, self.widest, self.speeds, self.every)
        return self._events()

    def arrive(self, request: int, engine: int, rank: int, now_s: float) -> None:
        """Now, until when time has gone on."""
        kernels.arrive(self.state, request, engine, engine * self.widest + rank, now_s)

    def place(self, request: int, now_s: float) -> None:
        """To the emptiest rank of the emptiest engine that takes requests."""
        kernels.place(self.state, request, now_s, self.widest)

    def serve_all(self) -> None:
        """Each request by the emptiest rank, to its end."""
        for one, at_s in enumerate(self.state.at_s.tolist()):
            self.advance(at_s)
            self.place(one, at_s)
        self.advance(np.inf)

    def serve_many(
        self, first: int, last: int, until: float, place: int = NOBODY
    ) -> tuple[int, Sequence[Sequence[int]]]:
        """Those of [first, last) up to the next that is placed by who asks, until whose moment time
        has gone on, or ``last`` once it is ``until``; and what came of requests. place: of the
        first, if it was asked for: engine x widest + rank"""
        state, more = self.state, (self.every, self.widest, self.speeds, place)
        return int(kernels.serve_many(state, first, last, until, *more)), self._events()

    def again(self, engine: int) -> list[int]:
        """An engine's memory is gone: its requests, which nobody has any more and which begin
        anew."""
        s, first = self.state, engine * self.widest
        places = range(first, first + self.widest)
        lost = [int(s.running[at, seat]) for at in places for seat in range(s.begun[at])]
        for at in places:
            one = int(s.head[at])
            while one != NOBODY:
                lost.append(one)
                one = int(s.following[one])
        here = slice(first, first + self.widest)
        for array in (s.seated, s.begun, s.kv, s.context, s.progress, s.queued):
            array[here] = 0
        for at in places:
            caches.forget(s, at)
        s.head[here], s.due[here], s.busy[engine] = NOBODY, NEVER, 0
        self.cut += int(np.isfinite(s.first_s[lost]).sum())
        s.first_s[lost] = np.inf
        return sorted(lost)

    def samples(self, engine: int) -> Sample:
        """What its /metrics would say."""
        s, here = self.state, slice(engine * self.widest, (engine + 1) * self.widest)
        room = self.speeds.kv_tokens * int(s.ranks[engine])
        return Sample(
            ttft=Histogram(TTFT_BOUNDS, tuple(s.ttft[engine].tolist())),
            gaps=Histogram(GAP_BOUNDS, tuple(s.gaps[engine].tolist())),
            running=float(s.begun[here].sum()),
            waiting=float(s.queued[here].sum()),
            kv_use=float(s.kv[here].sum()) / room,
            finished=float(s.finished[engine]),
            finished_prompt_tokens=float(s.prompts[engine]),
            prompt_tokens=float(s.prefilled[engine]),
            output_tokens=float(s.decoded[engine]),
        )

    def _events(self) -> Sequence[Sequence[int]]:
        s = self.state
        found: Sequence[Sequence[int]] = s.events[: s.told[0]].tolist()
        s.told[0] = 0
        return found


def _caches(arrivals: Arrivals, ranks: int) -> Mapping[str, Any]:
    """What of a State their prefix caches are. Where no prefix is known there is none."""
    known = arrivals.prefixes
    if known is None:
        known = Prefixes(1, np.zeros(0, np.int64), np.zeros(1, np.int64))
    blocks, uses = int(known.blocks.max(initial=-1)) + 1, len(known.blocks)
    places = caches.table_of(ranks, blocks, uses)
    requests = len(known.begins) - 1
    return {
        "blocks": known.blocks.astype(np.int64),
        "begins": known.begins.astype(np.int64),
        "told": np.array([0, known.block_tokens, max(blocks, 1)]),
        "cached": np.tile([NOWHERE, 0, NOWHERE], (places, 1)),
        "line": np.tile([NOWHERE, NOWHERE, 0], (ranks, 1)),
        "waiting": np.zeros((uses + requests, 2), np.int64),
    }
