"""Requests that agents sampled, token by token, by pool and phase. They tell what users wrote: in
memory alone, bounded, and not for long."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from controller.config import Traces
from controller.fleet.pools import Group
from controller.ledger.records import form_of
from controller.ports import Unseen
from placer.arrays import IntArray
from placer.clock import Clock
from placer.marks import Mark
from placer.model import ModelShape
from placer.trace import Trace

BYTES = 64 * 2**20  # of a pool and phase, at most
ALL_BYTES = 2**30  # of all of them
ONE_BYTES = 15 * 2**20  # of a request: an answer holds no more
JUDGES = 4  # times least_tokens are what a plan is judged on, if there are so many


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Request:
    """The tokens of a request that are in one phase; ``mixed`` if its worker did not tell.

    expert_ids: [tokens, layers, top_k]; token_ids: [tokens] vocabulary ids, or None
    mark:       how a front chose its rank
    engine, rank, plan: where it was served, and the digest of the map there; empty and -1 if not
                known
    asked:      token ids of the prompt that it answers, as far as they are known
    """

    phase: str
    experts: int
    expert_ids: IntArray
    token_ids: IntArray | None = None
    mark: Mark = Mark.NONE
    rank: int = -1
    plan: str = ""
    engine: str = ""
    asked: IntArray | None = None

    @property
    def tokens(self) -> int:
        return len(self.expert_ids)

    @property
    def bytes(self) -> int:
        return sum(
            0 if array is None else array.nbytes
            for array in (self.expert_ids, self.token_ids, self.asked)
        )

    def fits(self, model: ModelShape) -> bool:
        sizes = *self.expert_ids.shape[1:], self.experts
        return sizes == (model.layers, model.top_k, model.experts)


@dataclass(frozen=True, slots=True)
class Reading:
    """A reading of sampled requests. requests: by phase; token_ids: whether with those"""

    who: str = ""
    requests: Mapping[str, int] = field(default_factory=dict)
    token_ids: bool = False

    @property
    def told(self) -> str:
        """For people."""
        if not self.requests:
            return f"{self.who} read sampled requests: there were none"
        parts = " and ".join(f"{number:,} of {phase}" for phase, number in self.requests.items())
        ids = "with" if self.token_ids else "without"
        return f"{self.who} read sampled requests: {parts}, {ids} token ids"


FORM = form_of(Reading)


Ring = deque[tuple[float, Request]]  # when each came; oldest first


class SampledRequests:
    """Sampled requests of all pools. The newest are kept, as many as ``settings`` say of a pool."""

    def __init__(self, settings: Callable[[str], Traces], clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._rings: dict[str, dict[str, Ring]] = {}  # by pool, then by phase
        self._bytes: Counter[tuple[str, str]] = Counter()

    @property
    def bytes(self) -> int:
        return self._bytes.total()

    def add(self, pool: str, requests: Iterable[Request]) -> None:
        now_s, most = self._clock.monotonic(), self._settings(pool).requests
        rings = self._rings.setdefault(pool, {})
        for one in requests:
            if one.bytes > ONE_BYTES:
                continue
            ring, key = rings.setdefault(one.phase, deque()), (pool, one.phase)
            ring.append((now_s, one))
            self._bytes[key] += one.bytes
            while len(ring) > most or self._bytes[key] > BYTES or self.bytes > ALL_BYTES:
                self._drop(pool, one.phase)

    def forget(self) -> None:
        """What is too old."""
        for pool in list(self._rings):
            self._forget(pool)

    def of(self, pool: str, model: ModelShape, phase: str = "mixed") -> Ring:
        """Of this model; ``mixed`` is all phases."""
        self._forget(pool)
        rings = self._rings.get(pool, {})
        found = [one for name, ring in rings.items() if phase in (name, "mixed") for one in ring]
        found.sort(key=lambda one: one[0])
        return deque((at_s, one) for at_s, one in found if one.fits(model))

    def unseen(self, group: Group, phase: str, least_tokens: int) -> Unseen:
        """What a plan is judged on that is made from the group's window of now: the last requests
        that came before anything in it was counted. Their tokens were counted with the pushes that
        they came with, or earlier ones. Without vocabulary ids, which no score asks for."""
        since_s = group.since_s(phase)
        tokens, chosen = 0, []
        for at_s, one in reversed(self.of(group.pool, group.model, phase)):
            if tokens >= JUDGES * least_tokens:
                break
            if since_s is not None and at_s < since_s:
                chosen.append(replace(one, token_ids=None, asked=None))
                tokens += one.tokens
        if tokens < least_tokens:
            return Unseen(
                f"judged on its own traffic alone: sampled requests from before its window have "
                f"{tokens:,} tokens < {least_tokens:,} (least_tokens)"
            )
        number = f"{len(chosen):,} sampled request{'s' if len(chosen) > 1 else ''}"
        return Unseen(f"{number} from before its window", trace_of(chosen[::-1]))

    def _forget(self, pool: str) -> None:
        since_s = self._clock.monotonic() - self._settings(pool).kept_s
        rings = self._rings.get(pool, {})
        for phase, ring in list(rings.items()):
            while ring and ring[0][0] <= since_s:
                self._drop(pool, phase)
            if not ring:
                del rings[phase], self._bytes[pool, phase]
        if not rings:
            self._rings.pop(pool, None)

    def _drop(self, pool: str, phase: str) -> None:
        _, one = self._rings[pool][phase].popleft()
        self._bytes[pool, phase] -= one.bytes


def trace_of(requests: Sequence[Request]) -> Trace:
    """Of one model. Vocabulary ids only if all have them."""
    phases = {one.phase for one in requests}
    token_ids = [one.token_ids for one in requests if one.token_ids is not None]
    return Trace(
        expert_ids=np.concatenate([one.expert_ids for one in requests]),
        seq_lens=np.array([one.tokens for one in requests]),
        experts=requests[0].experts,
        token_ids=np.concatenate(token_ids) if len(token_ids) == len(requests) else None,
        meta={"phase": phases.pop() if len(phases) == 1 else "mixed"},
    )
