"""Trace: which experts each token was routed to, layer by layer, sequence after sequence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from placer.arrays import BoolArray, FloatArray, IntArray, frozen, native
from placer.bounds import MOST_EXPERTS, MOST_PAIRS, MOST_TOP_K
from placer.errors import RoutingError
from placer.pace import Pace, merged, of_meta

PHASES = ("prefill", "decode", "mixed")


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Routing of real tokens.

    expert_ids: [tokens, layers, top_k] the experts of each token, in any order, which means
        nothing: they are kept in ascending order, so that no figure can depend on it
    seq_lens:   [sequences] lengths of the sequences laid end to end
    experts:    logical experts a layer
    token_ids:  [tokens] vocabulary ids, if known
    gates:      [tokens, layers, top_k] router weights of the same experts, if known
    meta:       what else the recorder wrote (model, phase, ...)
    notes:      what a reader left out or took otherwise, and of how many tokens
    """

    expert_ids: IntArray
    seq_lens: IntArray
    experts: int
    token_ids: IntArray | None = None
    gates: FloatArray | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids, lens = self.expert_ids, self.seq_lens
        if ids.ndim != 3 or ids.dtype.kind not in "iu":
            raise RoutingError(
                f"expert_ids is {ids.dtype}{list(ids.shape)}"
                ": it must be integers [tokens, layers, top_k]"
            )
        if 0 in ids.shape:
            raise RoutingError(
                f"an empty trace (expert_ids {list(ids.shape)}): record some tokens first"
            )
        pairs = self.layers * self.experts**2
        if self.top_k > MOST_TOP_K or self.experts > MOST_EXPERTS or pairs > MOST_PAIRS:
            raise RoutingError(f"a trace of {self.dims}: no model is as large, check what wrote it")
        check_lengths(lens, len(ids))
        if self.phase not in PHASES:
            raise RoutingError(f"phase {self.phase!r}: use one of {', '.join(PHASES)}")
        for name, array, shape, kinds in (
            ("token_ids", self.token_ids, ids.shape[:1], "iu"),
            ("gates", self.gates, ids.shape, "fiu"),
        ):
            if array is not None and (array.shape != shape or array.dtype.kind not in kinds):
                must_be = f"{'integers' if kinds == 'iu' else 'numbers'} {list(shape)}"
                raise RoutingError(
                    f"{name} is {array.dtype}{list(array.shape)}: it must be {must_be}"
                )
        if self.gates is not None and not np.isfinite(self.gates).all():
            raise RoutingError("gates hold NaN or infinity: record the routing again")
        if self.gates is not None and (lowest := self.gates.min()) < 0:
            raise RoutingError(
                f"gates hold {lowest:g}: router weights are 0 or more; give those after the "
                "softmax, or leave them out"
            )
        self._check_range()
        if not _ascends(ids):
            self._sort()
        for name in ("expert_ids", "seq_lens", "token_ids", "gates"):
            if (array := getattr(self, name)) is not None:
                object.__setattr__(self, name, frozen(native(array)))

    def _check_range(self) -> None:
        low, high = int(self.expert_ids.min()), int(self.expert_ids.max())
        if low < 0 or high >= self.experts:
            raise RoutingError(
                f"expert id {low if low < 0 else high} is outside 0..{self.experts - 1}"
                ": is this another model's trace?"
            )

    def _sort(self) -> None:
        """Experts in ascending order, each with its gate."""
        if self.gates is None:
            ids = np.sort(self.expert_ids, axis=2)
        else:
            order = np.argsort(self.expert_ids, axis=2)
            ids = np.take_along_axis(self.expert_ids, order, axis=2)
            object.__setattr__(self, "gates", np.take_along_axis(self.gates, order, axis=2))
        if not _ascends(ids):
            token, layer, column = np.argwhere(ids[:, :, 1:] == ids[:, :, :-1])[0]
            is_alike = (ids[token] == ids[token, layer, column]).all()
            why = (
                "if it only fills up a batch, leave such tokens out"
                if is_alike
                else "the recorder mixed up its columns"
            )
            raise RoutingError(
                f"token {token} has expert {ids[token, layer, column]} twice in the top-"
                f"{self.top_k} of layer {layer}{', and no other' if is_alike else ''}: {why}"
            )
        object.__setattr__(self, "expert_ids", ids)

    @property
    def tokens(self) -> int:
        return self.expert_ids.shape[0]

    @property
    def layers(self) -> int:
        return self.expert_ids.shape[1]

    @property
    def top_k(self) -> int:
        return self.expert_ids.shape[2]

    @property
    def sequences(self) -> int:
        return len(self.seq_lens)

    @property
    def phase(self) -> str:
        return str(self.meta.get("phase", "mixed"))

    @property
    def pace(self) -> Pace | None:
        """How the engine's steps went, if the recorder measured them."""
        return of_meta(self.meta)

    @property
    def dims(self) -> str:
        return f"{self.layers} layers x {self.experts} experts, top-{self.top_k}"

    @property
    def load(self) -> IntArray:
        """[layers, experts] tokens routed to each expert."""
        layer = np.arange(self.layers)[:, None] * self.experts
        flat = (self.expert_ids.astype(np.intp) + layer).ravel()
        counts = np.bincount(flat, minlength=self.layers * self.experts)
        return counts.reshape(self.layers, self.experts)

    def select(self, chosen: BoolArray) -> "Trace":
        """The sequences where ``chosen`` [sequences] is true, in their order."""
        kept = np.repeat(chosen, self.seq_lens)
        return replace(
            self,
            expert_ids=self.expert_ids[kept],
            seq_lens=self.seq_lens[chosen],
            token_ids=None if self.token_ids is None else self.token_ids[kept],
            gates=None if self.gates is None else self.gates[kept],
        )

    def split(self, share: float, seed: int) -> tuple["Trace", "Trace"]:
        """Two traces: the sequences to fit on, and a random ``share`` of them held out."""
        if not 0 < share < 1:
            raise RoutingError(f"holdout {share}: it must be a share between 0 and 1, such as 0.5")
        if self.sequences < 2:
            raise RoutingError(
                "a trace of one sequence cannot be split, and nothing is left to judge on: record "
                "more requests"
            )
        size = min(max(round(share * self.sequences), 1), self.sequences - 1)
        held_out = np.zeros(self.sequences, dtype=bool)
        held_out[np.random.default_rng(seed).permutation(self.sequences)[:size]] = True
        return self.select(~held_out), self.select(held_out)


def _ascends(ids: IntArray) -> bool:
    """Whether each token's experts are in ascending order, and so none is there twice."""
    return bool((ids[:, :, 1:] > ids[:, :, :-1]).all())


def check_lengths(seq_lens: IntArray, tokens: int) -> None:
    """Raises RoutingError unless the sequences' lengths add up to the tokens."""
    if seq_lens.ndim != 1 or seq_lens.dtype.kind not in "iu":
        raise RoutingError(
            f"seq_lens is {seq_lens.dtype}{list(seq_lens.shape)}: it must be integers [sequences]"
        )
    if not len(seq_lens):
        raise RoutingError("an empty trace (no sequences): record some tokens first")
    if seq_lens.min() < 1:
        raise RoutingError(
            f"seq_lens holds {seq_lens.min()}: every sequence must have a token or more"
        )
    # No integer overflows: a file may hold any.
    if (total := seq_lens.sum(dtype=np.float64)) != tokens:
        raise RoutingError(
            f"seq_lens add up to {total:.0f} but expert_ids holds {tokens} tokens"
            ": the file is cut short or mixed up"
        )


def concatenate(traces: Sequence[Trace]) -> Trace:
    """One trace of all sequences. Token ids and gates stay only where every trace has them."""
    first = traces[0]
    for other in traces[1:]:
        if other.dims != first.dims:
            raise RoutingError(
                f"the traces disagree: {first.dims} and {other.dims}: give traces of one model only"
            )
    phases = {trace.phase for trace in traces}
    meta = {**first.meta, "phase": phases.pop() if len(phases) == 1 else "mixed"}
    if (pace := merged((trace.phase, trace.pace) for trace in traces)) is not None:
        meta["pace"] = asdict(pace)

    def joined(name: str) -> Any:
        parts = [getattr(trace, name) for trace in traces]
        return None if any(part is None for part in parts) else np.concatenate(parts)

    return Trace(
        expert_ids=joined("expert_ids"),
        seq_lens=joined("seq_lens"),
        experts=first.experts,
        token_ids=joined("token_ids"),
        gates=joined("gates"),
        meta=meta,
        notes=added([trace.notes for trace in traces]),
    )


def told(notes: Mapping[str, float]) -> tuple[str, ...]:
    """Notes as sentences."""
    return tuple(f"{note}: {tokens:,.10g} tokens" for note, tokens in notes.items())


def added(notes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Notes of parts as those of the whole: each once, with the tokens of all."""
    total: dict[str, float] = {}
    for some in notes:
        for note, tokens in some.items():
            total[note] = total.get(note, 0) + tokens
    return total
