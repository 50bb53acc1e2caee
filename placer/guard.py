"""Unknown traffic: what a recording says of requests that it does not hold.

A plan may have to serve more than was recorded. Of that share, the *guard*, only this is taken to
be known: it uses every expert alike in the mean, and departs from the mean as far as the recorded
traffic does, its experts together as in the recorded tokens. With p[e] the chance that a recorded
token uses an expert, P[e, f] that it uses both, P[e, e] = p[e], K experts a token of E (ours):

    mean of p'[e]     = K / E
    cov(p'[e], p'[f]) = s * (P[e, f] - p[e] p[f])    s = sum (p[e] - K/E)^2 / sum p[e] (1 - p[e])

The second matrix is the covariance of one token's choices, so that s is how uneven the recorded
loads are beside those of a single token; pairs and transitions are those of chance.
"""

from dataclasses import replace

import numpy as np

from placer.profile import Noise, Profile


def guarded(profile: Profile, share: float) -> Profile:
    """``profile`` with ``share`` of its traffic replaced by unknown traffic, and so uncertain."""
    if not share:
        return profile
    experts = profile.experts
    known, tokens, k = 1 - share, profile.tokens, profile.top_k
    used = profile.load / tokens
    even = used.mean(axis=1, keepdims=True)
    spread = ((used - even) ** 2).sum(axis=1) / np.maximum((used * (1 - used)).sum(axis=1), 1e-300)
    variance = used * (1 - used)
    covariance, pairs, transitions = None, None, None
    off = 1 - np.eye(experts)
    if profile.coactivation is not None:
        both = profile.coactivation / tokens
        covariance = both - used[:, :, None] * used[:, None, :]
        covariance *= off * (spread * share**2)[:, None, None]
        chance = tokens * k * (k - 1) / (experts * max(experts - 1, 1))
        pairs = known * profile.coactivation + share * chance * off
    if profile.transitions is not None:
        total = profile.transitions.sum(axis=(1, 2), keepdims=True)
        transitions = known * profile.transitions + share * total / experts**2
    return replace(
        profile,
        load=known * profile.load + share * even * tokens,
        coactivation=pairs,
        transitions=transitions,
        unknown=Noise(variance * (spread * share**2)[:, None], covariance),
    )


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
