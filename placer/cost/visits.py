"""The chance that a token has at least one of its experts in a place, from loads and pairs."""

from dataclasses import dataclass

import numpy as np

from placer.arrays import BoolArray, FloatArray, pair_sums
from placer.cost.sharing import away
from placer.objective import Dispatch
from placer.placement import Placement
from placer.profile import Profile


@dataclass(frozen=True, slots=True, eq=False)
class Visits:
    """What tokens have in each place.

    mean:  [layers, places] mean number of a token's experts there
    pairs: [layers, places] mean number of pairs of them
    """

    mean: FloatArray
    pairs: FloatArray
    top_k: int

    def chance(self) -> FloatArray:
        """[layers, places] that a token has any there."""
        return visit_chance(self.mean, self.pairs, self.top_k)


def visits(
    profile: Profile, placement: Placement, places: int, dispatch: Dispatch
) -> tuple[Visits, Visits]:
    """Of each place, GPUs or nodes: by a token whose home it is, and by one from elsewhere.

    Loads give the mean number of a token's experts in a place, co-activations that of pairs of
    them, since a replica goes by co-location; without co-activations as if by chance.
    """
    experts, _, first = placement.content(places)
    replicas = placement.held_in(places).sum(axis=2)
    layer = np.arange(profile.layers)[:, None, None]
    use = (profile.load / profile.tokens)[layer, experts]
    served, colocated = away(replicas[layer, experts], places, dispatch)

    def of(share: FloatArray, weight: FloatArray) -> Visits:
        if profile.coactivation is None:
            seen = use * weight
            both = (seen.sum(axis=2) ** 2 - (seen**2).sum(axis=2)) / 2
        else:
            there = experts, weight
            both = pair_sums(profile.coactivation, there, there) / (2 * profile.tokens)
        return Visits((use * share).sum(axis=2), both, profile.top_k)

    from_away = of(first * served, first * colocated)
    if dispatch == "allgather" or replicas.max() <= 1:
        return from_away, from_away
    held = first.astype(np.float64)
    return of(held, held), from_away


def own_places(gpus: int, places: int) -> BoolArray:
    """[gpus, places] which place, GPU or node, is each GPU's own."""
    own: BoolArray = np.repeat(np.eye(places, dtype=bool), gpus // places, axis=0)
    return own


def visit_chance(
    mean: FloatArray, pairs: FloatArray, top_k: int, of: FloatArray | None = None
) -> FloatArray:
    """Chance that a token has any of its experts in a place.

    mean:  mean number of its experts there
    pairs: mean number of pairs of them
    of:    mean number there of the tokens that are asked about, if these are but some of all

    One minus the zero class of the beta-binomial law with these two moments (with the
    hypergeometric as its under-dispersed side): exact for top-2.
    """
    share = mean / top_k
    if top_k == 1:
        return share if of is None else of
    both = pairs / (top_k * (top_k - 1) / 2)
    again = np.divide(both, share, out=np.zeros_like(share), where=share > 0)
    spread = np.divide(again - share, 1 - again, out=np.zeros_like(share), where=again < 1)
    asked = share if of is None else np.minimum(of / top_k, 1.0)
    step = np.arange(top_k).reshape(-1, *[1] * asked.ndim)
    per_step = 1 + step * spread
    left = 1 - asked + step * spread
    none = np.divide(left, per_step, out=np.zeros_like(left), where=per_step > 0)
    chance: FloatArray = np.where(again < 1, 1 - np.clip(none, 0, 1).prod(axis=0), asked)
    return chance
