"""What a worker recorded in a while, as values that `placer plan` reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from placer.agent.sampling import Sequence
from placer.arrays import IntArray
from placer.pace import Pace
from placer.profile import Profile
from placer.trace import Trace

PHASES = ("prefill", "decode")
PAUSE_S = 5.0  # between recordings, at least
COPIED_PER_S = 2 * 2**20  # bytes of counters, in the mean: DeepSeek-V3 takes 29 s


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """What was counted in a while, by phase (see PHASES), on the host.

    load: [2, layers, experts]; coactivation: [2, layers, experts, experts], its diagonal being the
    load; transitions: [2, layers - 1, experts, experts], one drawn pair a token
    tokens: [2]
    """

    load: IntArray
    transitions: IntArray
    coactivation: IntArray
    tokens: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """What a worker recorded in ``window_s`` seconds. requests: [2] seen in each phase; paces: how
    the steps of each phase went, if they were measured

    The next should wait for ``pause_s``: copying large counters makes the engine wait.
    """

    counts: Counts
    sequences: list[Sequence]
    requests: IntArray
    window_s: float
    paces: Mapping[str, Pace] = field(default_factory=dict)

    @property
    def pause_s(self) -> float:
        size = self.counts.transitions.nbytes + self.counts.coactivation.nbytes
        return max(PAUSE_S, size / COPIED_PER_S)

    def profiles(self) -> list[Profile]:
        """One of each phase in which there were tokens."""
        counts, found = self.counts, []
        for at, phase in enumerate(PHASES):
            if not counts.tokens[at]:
                continue
            coactivation = counts.coactivation[at].astype(np.float64)
            diagonal = np.arange(coactivation.shape[-1])
            coactivation[:, diagonal, diagonal] = 0  # there it is the load
            load = counts.load[at].astype(np.float64)
            found.append(
                Profile(
                    load=load,
                    top_k=round(load[0].sum() / counts.tokens[at]),
                    tokens=int(counts.tokens[at]),
                    sequences=int(self.requests[at]),
                    transitions=counts.transitions[at].astype(np.float64),
                    coactivation=coactivation,
                    phase=phase,
                    window_s=self.window_s,
                    pace=self.paces.get(phase),
                    sampled=True,  # a router may mark choices that are no expert's
                )
            )
        return found

    @property
    def whole(self) -> list[Sequence]:
        """The sampled requests, but those with a choice that is no expert's: a router may mark some
        so, and a trace cannot tell of them."""
        experts = self.counts.load.shape[-1]
        return [
            one
            for one in self.sequences
            if one.expert_ids.min() >= 0 and one.expert_ids.max() < experts
        ]

    def trace(self) -> Trace | None:
        """The sampled requests; vocabulary ids only if all have them."""
        if not (whole := self.whole):
            return None
        token_ids = [one.token_ids for one in whole if one.token_ids is not None]
        return Trace(
            expert_ids=np.concatenate([one.expert_ids for one in whole]),
            seq_lens=np.array([len(one.expert_ids) for one in whole]),
            experts=self.counts.load.shape[-1],
            token_ids=np.concatenate(token_ids) if len(token_ids) == len(whole) else None,
            meta={"phase": "mixed", "recorder": "placer agent"},
        )
