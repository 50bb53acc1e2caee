"""What the engine says to its ranks. Each message has one answer; they take turns."""

from dataclasses import dataclass
from typing import TypeAlias

from controller.elastic.arena import Layout
from controller.local_engine.expert_map import ExpertMap
from controller.local_engine.model.weights import Sizes
from placer.arrays import IntArray


@dataclass(frozen=True, slots=True)
class Pace:
    """The pace of a device that stands for another one: seconds that a step takes at least, and
    more for each of the rank's own tokens."""

    step_s: float
    token_s: float


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message: get ready for weights of these sizes, as a standby does."""

    sizes: Sizes
    pace: Pace | None


@dataclass(frozen=True, slots=True)
class Bind:
    """From now on compute on this core alone, and wait for other ranks awake: nobody else needs
    it."""

    core: int


@dataclass(frozen=True, slots=True)
class Attach:
    """Map the arena whose descriptor comes with this: dense weights and the KV cache."""

    layout: Layout


@dataclass(frozen=True, slots=True)
class Detach:
    """Let go of all memory, to be a standby."""


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get ready to serve this map, beside what is served now.

    group: ranks that will step together; the descriptors of their exchange and of sockets to the
           others come with this. 0: those that do
    """

    served: ExpertMap
    rank: int
    group: int = 0


@dataclass(frozen=True, slots=True)
class Switch:
    """Steps go by what was prepared from now on."""


@dataclass(frozen=True, slots=True)
class Forget:
    """What was prepared will not come."""


@dataclass(frozen=True, slots=True)
class Staged:
    """The change that is to come; epoch 0 for none."""

    epoch: int
    digest: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive tokens of one request, from position ``start`` on.

    seat:    its place in the KV cache
    samples: whether the token after them is wanted
    """

    seat: int
    start: int
    tokens: tuple[int, ...]
    samples: bool


@dataclass(frozen=True, slots=True)
class Step:
    """Compute these; answered by ``Stepped``, or by ``Aborted`` if a peer went away."""

    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Stepped:
    """What a step brought. next_tokens, and sums of what they were chosen from: of the pieces that
    sample, in order; experts: [tokens, layers, top_k]; waited_s: for other ranks"""

    next_tokens: list[int]
    sums: list[int]
    experts: IntArray
    waited_s: float


@dataclass(frozen=True, slots=True)
class Aborted:
    """The step can be made again."""


@dataclass(frozen=True, slots=True)
class Report:
    """Asks for what the rank holds: ``Holds``."""


@dataclass(frozen=True, slots=True)
class Holds:
    served: ExpertMap
    staged: Staged


Message: TypeAlias = (
    Setup | Bind | Attach | Detach | Prepare | Switch | Forget | Staged | Step | Report
)
