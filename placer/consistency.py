"""What counts of routing can be: whether loads and pairs can all be of the same tokens."""

from typing import Any

import numpy as np
import numpy.typing as npt

from placer.arrays import BoolArray, FloatArray, IntArray
from placer.errors import RoutingError

ROUNDING = 1e-6  # of counts, as a share
PLENTY = 4  # choices for each expert of a layer: with as many, half of the experts get some

Counts = FloatArray | IntArray


def check_load(load: Counts, tokens: float, top_k: int, sampled: bool) -> None:
    """Raises RoutingError unless so many tokens can have left this load [layers, experts]."""
    choices, most = _sum(load, 1), tokens * top_k
    layer, expert = divmod(int(load.argmax()), load.shape[1])
    if load[layer, expert] > tokens * (1 + ROUNDING):
        raise RoutingError(
            f"expert {expert} of layer {layer} has a load of {load[layer, expert]:.10g} from "
            f"{tokens:.10g} tokens: the counts contradict themselves"
        )
    layer = int(choices.argmax())
    if choices[layer] > most * (1 + ROUNDING):
        raise RoutingError(
            f"{tokens:.10g} tokens, top-{top_k}, but layer {layer} counts {choices[layer]:.10g} "
            "choices: the counts contradict themselves"
        )
    least = most * (1 - ROUNDING)
    if choices[choices.argmin()] >= least:  # nearly always
        return
    short = (choices > 0) & (choices < least)
    if not short.any():
        return
    if (experts := one_rank(load)) is not None:
        raise RoutingError(
            f"only {experts} of {load.shape[1]} experts have any load, the same in every layer, and"
            f" layers count {choices.max() / most:.1%} of tokens x top_k at most"
            ": are these one rank's counters? add up those of all ranks"
        )
    if not sampled:
        layer = int(short.argmax())
        raise RoutingError(
            f"{tokens:.10g} tokens, top-{top_k}, but layer {layer} counts {choices[layer]:.10g} "
            f"choices of {most:.10g}: if counters saw a part of them, say sampled"
        )


def one_rank(load: Counts, alike: bool = True) -> int | None:
    """How many experts have load, the same in all layers if ``alike``, if that is half of them or
    fewer, which that many choices do not leave by chance."""
    used = (load > 0).any(axis=0).sum() if alike else (load > 0).sum(axis=1).max()
    if 2 * used > load.shape[1]:
        return None
    choices = load.sum(axis=1, dtype=np.float64)
    enough = choices[choices > 0].min(initial=np.inf) >= PLENTY * load.shape[1]
    return int(used) if enough else None


def check_pairs(
    load: Counts,
    tokens: float,
    top_k: int,
    transitions: Counts | None,
    coactivation: Counts | None,
    lost: float = 0.0,
    sampled: bool = False,
) -> None:
    """Raises RoutingError unless tokens with this load [layers, experts] can have these pairs.

    A token adds one pair of its experts to each transition, and beside each of its experts it used
    top_k - 1 others. Reads all pairs: of a large model tens of MB.

    transitions: [layers - 1, experts, experts]; coactivation: [layers, experts, experts]
    lost: the share that a small type may have taken from loads
    sampled: pairs may be of a part of the tokens, taken to be all: of an expert, too many by chance
    """

    def refuse_more(what: str, counts: Counts, most: npt.NDArray[Any]) -> None:
        """counts, most: [layers, experts], or [layers, 1] if of all experts"""
        beyond = np.argwhere(counts > most * (1 + lost))
        if len(beyond):
            layer, expert = beyond[0]
            which = f" expert {expert}" if counts.shape[1] > 1 else ""
            raise RoutingError(
                f"{counts[layer, expert]:.15g} {what}{which} in layer {layer}, of which there can "
                f"be {most[layer, expert]:.15g}: the counts contradict themselves"
            )

    if transitions is not None:
        drawn = _sum(transitions, (1, 2))[:, None]
        refuse_more("transitions", drawn, np.full(drawn.shape, tokens))
        if not sampled:
            refuse_more("transitions from", _sum(transitions, 2), load[:-1])
            refuse_more("transitions to", _sum(transitions, 1), load[1:])
    if coactivation is not None:
        if not sampled:
            refuse_more("co-activations of", _sum(coactivation, 2), load * (top_k - 1.0))
            refuse_more("co-activations of one pair with", coactivation.max(axis=2), load)
        diagonal: BoolArray = np.diagonal(coactivation, axis1=1, axis2=2)
        if diagonal.any() or not all(np.array_equal(layer, layer.T) for layer in coactivation):
            raise RoutingError(
                "co-activations of an expert with itself, or not the same both ways: the counts "
                "contradict themselves"
            )


def _sum(pairs: Counts, axes: int | tuple[int, ...]) -> Counts:
    # Whole numbers stay whole: numpy adds them up in 64 bits, twice as fast as in floats.
    found: Counts = pairs.sum(axis=axes, dtype=np.float64 if pairs.dtype.kind == "f" else None)
    return found
