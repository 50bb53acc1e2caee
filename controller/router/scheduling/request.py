"""What is asked of a scheduler, and what it answers."""

from dataclasses import dataclass
from typing import NamedTuple

from placer.arrays import IntArray

# Columns of what is told of a decision: a Why's figures, and what a scheduler keeps of it.
LEFT, NEED, COMING, SCORED = range(7, 11)
TOLD, FIGURES = 7, 11  # the first are a Why's


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


class Why(NamedTuple):
    """The figures behind a decision; words are made of them only where they are read.

    rule:      the scheduler's name
    local:     share of the request's experts expected on the rank
    mean_local, mean_backlog: of all ranks that it might have gone to
    saved_s:   GPU seconds expected to be saved against their mean
    cached:    prompt tokens that the rank has in its prefix cache
    added:     experts a step that the engine has to read for it besides those it reads anyway
    backlog:   tokens that the rank has to serve still, without this request
    """

    rule: str
    local: float
    mean_local: float
    saved_s: float
    cached: float
    added: float
    backlog: float
    mean_backlog: float

    def __str__(self) -> str:
        parts = [f"{self.local:.0%} of its experts at home, {self.mean_local:.0%} in the mean"]
        if self.cached:
            parts.append(f"{self.cached:,.0f} tokens cached")
        if self.added:
            parts.append(f"{self.added:.1f} more experts read a step")
        parts.append(f"{self.saved_s * 1e3:.3g} ms of a GPU saved")
        parts.append(f"backlog {self.backlog:,.0f}, {self.mean_backlog:,.0f} tokens in the mean")
        return f"{self.rule}: {'; '.join(parts)}"


class Decision(NamedTuple):
    """Where a request goes.

    rank:   of the engine
    number: the decision's, by which a scheduler knows it again
    """

    engine: str
    rank: int
    why: Why
    number: int = 0
