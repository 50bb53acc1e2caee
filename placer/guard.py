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
