"""Tables with what they were made for, and the counts that they are made from."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placer.arrays import FloatArray, IntArray, frozen
from placer.errors import RoutingError
from placer.model import ModelShape
from placer.placement import Placement
from placer.tables.answers import Answered, further
from placer.tables.contexts import ORDERS, ContextTable, context_table
from placer.tables.counts import TokenTable, token_table
from placer.tables.devices import Chains, DeviceTables, chains, devices_of
from placer.tables.experts import ExpertTables, evidence, expert_tables, followers
from placer.tables.factors import Factors, factors
from placer.tables.owning import visits
from placer.trace import Trace

UNKNOWN = "unknown"  # the name of a model that nobody named
BY_IDS, BY_SETS = "token ids", "expert sets of the first layer"


def is_same(one: ModelShape, other: ModelShape) -> bool:
    """Whether they have the same sizes, and the same name if somebody named both."""
    return one.dims == other.dims and len({one.name, other.name} - {UNKNOWN}) < 2


def keyed_by(trace: Trace) -> str:
    """What a trace's tokens are told apart by."""
    return BY_SETS if trace.token_ids is None else BY_IDS


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """What agents sampled of one model's traffic under one placement, added up. It grows with the
    tokens that came, not with the requests, and is never written down.

    followers: [layers - 1, experts, experts] from ``experts.followers``
    """

    table: TokenTable
    longer: tuple[ContextTable, ...]
    followers: IntArray
    chains: Chains
    sequences: int
    keyed_by: str

    def __add__(self, other: "Counts") -> "Counts":
        """Raises RoutingError for another model's, placement's or kind of token."""
        if self.keyed_by != other.keyed_by:
            raise RoutingError(
                f"counts by {self.keyed_by} and by {other.keyed_by} do not add up: give traces "
                "that all have token ids, or none"
            )
        return Counts(
            self.table + other.table,
            tuple(one + two for one, two in zip(self.longer, other.longer, strict=True)),
            self.followers + other.followers,
            self.chains + other.chains,
            self.sequences + other.sequences,
            self.keyed_by,
        )


def counted(trace: Trace, placement: Placement) -> Counts:
    """Raises RoutingError for another model's trace."""
    return Counts(
        chains=chains(trace, placement),
        table=token_table(trace),
        longer=tuple(context_table(trace, order) for order in ORDERS),
        followers=followers(trace),
        sequences=trace.sequences,
        keyed_by=keyed_by(trace),
    )


@dataclass(frozen=True, slots=True)
class Origin:
    """What tables are for, and of how much traffic they were counted.

    plan:       digest of the placement
    model:      its name, or ``UNKNOWN``; dims: layers, experts and top-k, in words
    vocabulary: which one, such as the hash of its tokenizer's file; empty: nobody said
    keyed_by:   ``BY_IDS``, or ``BY_SETS``: an upper bound, since those are not known ahead
    """

    plan: str
    model: str
    dims: str
    vocabulary: str
    keyed_by: str
    tokens: int
    sequences: int

    def check(
        self,
        plan: str | None = None,
        model: ModelShape | None = None,
        vocabulary: str | None = None,
        keyed_by: str | None = None,
    ) -> None:
        """Raises RoutingError, which names both, for what the tables were not made for. None, and
        a name that nobody said: not compared."""
        if model is not None:
            names = {self.model, model.name} - {UNKNOWN}
            if self.dims != model.dims or len(names) > 1:
                raise _other("model", f"{self.model} ({self.dims})", f"{model.name} ({model.dims})")
        if plan is not None and self.plan != plan:
            raise _other("plan", self.plan, plan)
        if vocabulary and self.vocabulary and self.vocabulary != vocabulary:
            raise _other("vocabulary", self.vocabulary, vocabulary)
        if keyed_by is not None and self.keyed_by != keyed_by:
            raise _other("kind of token", self.keyed_by, keyed_by)


def _other(what: str, ours: str, theirs: str) -> RoutingError:
    return RoutingError(
        f"the tables are for {what} {ours}, and this is {theirs}: make others (placer tables)"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """All that is looked up ahead, for one placement.

    owning:    [rows, gpus] from ``owning.visits``; used: each token's experts
    following: [layers - 1, experts, experts] from ``experts.evidence``
    """

    origin: Origin
    placement: Placement
    devices: DeviceTables
    owning: npt.NDArray[np.float32]
    used: Factors
    experts: ExpertTables
    following: npt.NDArray[np.float16]

    def __post_init__(self) -> None:
        object.__setattr__(self, "following", frozen(self.following))


def tables_of(
    counts: Counts,
    model: ModelShape,
    vocabulary: str = "",
    embedding: FloatArray | None = None,
    answered: Iterable[Answered] = (),
) -> Tables:
    """The tables of the counts' placement.

    model:      whose routing was counted
    vocabulary: which one, for ``Origin``
    embedding:  [ids, dimensions] the model's token embedding: tokens that were not counted take
                the row of their nearest neighbour that was; without it, the prior
    answered:   requests that were counted, for how far answers are from the mean

    Raises RoutingError if the counts are another model's, or not by token ids but embedded.
    """
    table = counts.table
    if table.dims != model.dims:
        raise RoutingError(
            f"{model.name} has {model.dims} but the counts are of {table.dims}: give the model "
            "that was traced"
        )
    if embedding is not None:
        if counts.keyed_by != BY_IDS:
            raise RoutingError(
                f"an embedding is of token ids, and the traces have only {counts.keyed_by}: leave "
                "it out"
            )
        vocabulary_rows = table.vocabulary.with_neighbours(embedding)
        table = TokenTable(vocabulary_rows, table.times, table.counts, table.top_k)
    used = factors(table)
    used = used._replace(further=further(table, used, answered))
    load, tokens = table.counts[:, -1].astype(np.int64), int(table.times[-1])
    origin = Origin(
        counts.chains.placement.digest,
        model.name,
        model.dims,
        vocabulary,
        counts.keyed_by,
        tokens,
        counts.sequences,
    )
    return Tables(
        origin,
        counts.chains.placement,
        devices_of(table, counts.chains),
        visits(table, counts.chains.placement).astype(np.float16).astype(np.float32),
        used,
        expert_tables(table, counts.longer),
        evidence(counts.followers, load, tokens, table.top_k).astype(np.float16),
    )
