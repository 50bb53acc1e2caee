"""What is asked of a scheduler, and what it answers."""

from dataclasses import dataclass, field

import numpy as np

from placer.arrays import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What is known of a request before it runs.

    tokens: vocabulary ids of its prompt; None where nobody tokenised it
    length: tokens of its prompt
    most:   tokens that it may generate
    prefix: hashes of the blocks that its prompt begins with, each of all before it too
    """

    tokens: IntArray | None
    length: int
    most: int
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Why:
    """The figures behind a decision; words are made of them only where they are read.

    rule:      the scheduler's name
    local:     share of the request's experts expected on the rank; NaN where nothing is known
    by_chance: the mean of all ranks
    saved_s:   GPU seconds expected to be saved against the mean of all ranks
    cached:    prompt tokens that the rank has in its prefix cache
    added:     experts a step that the engine has to read for it besides those it reads anyway
    backlog:   tokens that the rank has to serve still, without this request
    mean_backlog: of all ranks
    """

    rule: str
    local: float
    by_chance: float
    saved_s: float
    cached: int
    added: float
    backlog: float
    mean_backlog: float

    def __str__(self) -> str:
        parts = []
        if not np.isnan(self.local):
            parts.append(f"{self.local:.0%} of its experts at home ({self.by_chance:.0%} by chance)")
        if self.cached:
            parts.append(f"{self.cached:,} tokens cached")
        if self.added:
            parts.append(f"{self.added:.1f} more experts read a step")
        if self.saved_s:
            parts.append(f"{self.saved_s * 1e3:.3g} ms saved")
        parts.append(f"backlog {self.backlog:,.0f} of {self.mean_backlog:,.0f} tokens in the mean")
        return f"{self.rule}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes.

    rank:   of the engine
    number: the decision's, by which a scheduler knows it again
    """

    engine: str
    rank: int
    why: Why = field(compare=False)
    number: int = 0
