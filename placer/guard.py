"""Unknown traffic: what a recording says of requests that it does not hold.

A plan may have to serve more than was recorded. Of that share, the *guard*, only this is taken to
be known: it uses every expert alike in the mean, and departs from the mean as far as the recorded
traffic does, its experts together as in the recorded tokens. With p[e] the chance that a recorded
token uses an expert, P[e, f] that it uses both, P[e, e] = p[e], K experts a token of E (ours):

    mean of p'[e]     = K / E
    cov(p'[e], p'[f]) = s * (P[e, f] - p[e] p[f])    s = sum (p[e] - K/E)^2 / sum p[e] (1 - p[e])

The second matrix is the covariance of one token's choices, so that s is how uneven the recorded
loads are beside those of a single token; pairs and transitions are those of chance. A layer of
which counters saw a part, or nothing, keeps its total; where all tokens used the same experts,
nothing is uncertain.
"""

from dataclasses import replace

import numpy as np

from placer.arrays import FloatArray
from placer.profile import Profile
from placer.spread import Noise


def guarded(profile: Profile, share: float) -> Profile:
    """``profile`` with ``share`` of its traffic replaced by unknown traffic, and so uncertain.

    Its ``noise`` is the recorded one times (1 - share)^2, ``unknown`` the law's times share^2.
    """
    if not share:
        return profile
    used = profile.load / profile.tokens
    even = used.mean(axis=1, keepdims=True)
    variance = np.maximum(used * (1 - used), 0.0)
    drawn = variance.sum(axis=1)
    uneven = ((used - even) ** 2).sum(axis=1)
    beside = np.divide(uneven, drawn, out=np.zeros_like(drawn), where=drawn > 0)
    covariance, pairs, transitions = None, None, None
    if profile.coactivation is not None:
        off = 1 - np.eye(profile.experts)
        both = profile.coactivation / profile.tokens
        covariance = (both - used[:, :, None] * used[:, None, :]) * off
        pairs = _mixed(profile.coactivation, off, share)
    if profile.transitions is not None:
        every = np.ones((profile.experts, profile.experts))
        transitions = _mixed(profile.transitions, every, share)
    return replace(
        profile,
        load=(1 - share) * profile.load + share * even * profile.tokens,
        coactivation=pairs,
        transitions=transitions,
        spread=None,
        known=profile.noise.times((1 - share) ** 2),
        unknown=Noise(variance, covariance).times(share**2 * beside),
    )


def _mixed(counts: FloatArray, chance: FloatArray, share: float) -> FloatArray:
    """``counts`` with ``share`` of each layer's own total spread over pairs as ``chance`` is."""
    total = counts.sum(axis=(1, 2), keepdims=True)
    return (1 - share) * counts + share * total * chance / max(chance.sum(), 1.0)


def advice(profile: Profile) -> str:
    """What to say of a recording whose requests resemble each other; empty if they do not.

    Were traffic of n kinds of requests, equally often, each with loads of its own, the mean load's
    unevenness u and the requests' variety v would be as v^2 / u^2 = n - 1. After n kinds the next
    is of another with the chance 1 / (n + 1) (Laplace's rule of succession): the guard.
    """
    variety = profile.variety
    if variety is None:
        return ""
    even = profile.load.mean(axis=1, keepdims=True)
    uneven = ((profile.load - even) ** 2).sum() / (profile.load**2).sum()
    kinds = 1 + variety**2 / max(float(uneven), 1e-12)
    if kinds >= 2:
        return ""
    return (
        f"the recording's requests resemble each other (variety {variety:.2f}: as if of "
        f"{kinds:.1f} kinds): if others may come, --guard {1 / (kinds + 1):.2f} plans for them, "
        "the chance that the next request is of another kind; or record more kinds of traffic"
    )
