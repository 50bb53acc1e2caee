"""What tables foretell of a trace, and what that is good for, in one value."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.cost.homes import homes
from placer.objective import STEP_TOKENS_PER_GPU
from placer.prediction.alignment import Shuffle, shuffle
from placer.prediction.locality import sch, srp
from placer.prediction.rebatching import active_experts
from placer.prediction.recall import Guesses, guesses, next_layer
from placer.tables.made import BY_SETS, Tables, keyed_by
from placer.tables.rates import local_by_layer
from placer.tables.vocabulary import token_identity
from placer.trace import Trace

BATCHES = (8, 16)
SEGMENTS, CACHES = (16, 64), (1.0, 2.0)  # tokens, and times top-k


@dataclass(frozen=True, slots=True)
class Batches:
    """Distinct experts that a layer reads for a batch: first in, first out; put together by the
    table; and by what the tokens will really use."""

    batch: int
    fifo: float
    table: float
    oracle: float


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Figures of a trace by tables that were made from another.

    known:       share of the tokens that the tables know
    top_k:       by length of the context: none (the prior), the token alone, 2 to 4 tokens
    likely:      of the token alone, only those likelier than not
    next_top_k, next_top_2k: from the set of the layer before; None of a single layer
    least_loaded, requests: [layers] LAR where requests go to the GPU with the fewest tokens, and
                 where each goes to the one that the tables name, whatever its load
    shuffle:     where tokens go one by one (tensor-parallel attention)
    batches:     of decoding; none if the trace has too few requests
    srp, sch:    by tokens of a segment; by that, and the size of the cache over top-k
    """

    tokens: int
    keyed_by: str
    known: float
    top_k: tuple[Guesses, ...]
    likely: Guesses
    next_top_k: Guesses | None
    next_top_2k: Guesses | None
    least_loaded: FloatArray
    requests: FloatArray
    shuffle: Shuffle
    gpus: int
    batches: tuple[Batches, ...]
    srp: dict[int, float | None]
    sch: dict[tuple[int, float], float]

    @property
    def is_upper_bound(self) -> bool:
        """Whether the tables go by what nobody knows before a token runs."""
        return self.keyed_by == BY_SETS


def predict(trace: Trace, tables: Tables) -> Prediction:
    """Raises RoutingError for tables of another kind of token."""
    tables.origin.check(keyed_by=keyed_by(trace))
    tokens = token_identity(trace)
    experts, placement, lens = tables.experts, tables.placement, trace.seq_lens
    rows = [experts.rows(tokens, lens, order) for order in range(experts.orders + 1)]
    width = min(2 * trace.top_k, trace.experts)
    ahead = [
        next_layer(trace, tables.following, some) if trace.layers > 1 else None
        for some in (trace.top_k, width)
    ]
    scores = tables.devices.request_scores(tokens, lens)
    balanced, wished = homes(lens, placement.gpus), scores.argmax(axis=1)
    step = STEP_TOKENS_PER_GPU[trace.phase] * placement.gpus
    return Prediction(
        tokens=trace.tokens,
        keyed_by=tables.origin.keyed_by,
        known=float((rows[1] >= 0).mean()),
        top_k=tuple(guesses(trace, experts, row, only_likely=False) for row in rows),
        likely=guesses(trace, experts, rows[1], only_likely=True),
        next_top_k=ahead[0],
        next_top_2k=ahead[1],
        least_loaded=local_by_layer(trace, placement, np.repeat(balanced, lens)),
        requests=local_by_layer(trace, placement, np.repeat(wished, lens)),
        shuffle=shuffle(trace, tables, step),
        gpus=placement.gpus,
        batches=tuple(_batches(trace, tables, rows[-1])),
        srp={segment: srp(trace, segment) for segment in SEGMENTS},
        sch={(SEGMENTS[0], size): sch(trace, SEGMENTS[0], size) for size in CACHES},
    )


def _batches(trace: Trace, tables: Tables, rows: IntArray) -> Iterator[Batches]:
    told = tables.experts.experts[:, rows].transpose(1, 0, 2)
    for batch in BATCHES:
        fifo, table, oracle = (
            active_experts(trace, batch, by) for by in (None, told, trace.expert_ids)
        )
        if fifo is not None and table is not None and oracle is not None:
            yield Batches(batch, fifo, table, oracle)
