"""Flows of ``coherent`` tokens, expected: each layer leaves them where one of their experts ran."""

import numpy as np

from placer.arrays import BoolArray, FloatArray, IntArray
from placer.cost.visits import Visits, own_places, visit_chance
from placer.placement import Placement
from placer.profile import Profile


class Owners:
    """Which GPUs have the tokens after each layer: those of their experts, each as likely.

    tokens:  [layers, gpus] that each GPU has after a layer
    leaving: [layers - 1, gpus, experts] of these, those that use each expert next, 1 / top_k each
    cross:   [layers, gpus, gpus] mean number of pairs of a token's experts, one on g, one on h
    """

    def __init__(
        self, profile: Profile, transitions: FloatArray, placement: Placement, served: FloatArray
    ) -> None:
        """served: [layers, experts, gpus] share of each expert's tokens that each GPU serves"""
        self._top_k, self._placement = profile.top_k, placement
        self._tokens = np.einsum("le,leg->lg", profile.load, served) / profile.top_k
        self._leaving = served[:-1].transpose(0, 2, 1) @ transitions
        self._cross = _cross(profile, served)

    def flows(
        self, from_home: FloatArray, kinds: tuple[Visits, Visits]
    ) -> tuple[FloatArray, FloatArray]:
        """Dispatch and combine, [layers, owners, places] tokens.

        from_home: [layers, owners, places] dispatch of tokens that are at home, as in the first
        kinds:     visits of tokens that are in the place, and of others

        Each owner's tokens visit a place as the mean number of their experts there says, and are
        together as many as have an expert there: exact for top-1, and for the combine of top-2,
        without replicas.
        """
        gpus, places = from_home.shape[1:]
        own, before = own_places(gpus, places), self._tokens[:-1, :, None]
        at_home, away = kinds
        held = self._placement.held_in(places)[1:]
        here = self._visitors(at_home, self._leaving @ held)
        there = self._visitors(away, _serving(self._leaving, held, own))
        # Of tokens that are told apart by their owners each kind is less diverse than all are.
        have = at_home.chance()[1:] * before.sum(axis=1)
        more = _over(have, here.sum(axis=1))[:, None]
        visitors = np.minimum(np.where(own, here, there) * more, before)
        sent = np.concatenate([from_home[:1], visitors])
        others = np.maximum(sent.sum(axis=1) - self._tokens @ own, 0.0)
        weight = self._cross @ own * ~own
        rest = _over(weight, weight.sum(axis=1, keepdims=True)) * others[:, None]
        return sent, self._tokens[:, :, None] * own + rest

    def _visitors(self, kind: Visits, activations: FloatArray) -> FloatArray:
        """[layers - 1, owners, places] tokens of each owner that visit, of what they use there."""
        before = self._tokens[:-1, :, None]
        mean = _over(activations * self._top_k, before)
        return before * visit_chance(kind.mean[1:, None], kind.pairs[1:, None], self._top_k, mean)


def _serving(leaving: FloatArray, held: BoolArray, own: BoolArray) -> FloatArray:
    """[layers - 1, owners, places] where the experts of ``leaving`` are served: on the spot if they
    are there, else in all places that hold them alike.

    held: [layers - 1, experts, places]; own: [owners, places]
    """
    here = held[:, :, own.argmax(axis=1)].transpose(0, 2, 1)
    serving: FloatArray = (leaving * ~here) @ _over(held, held.sum(axis=2, keepdims=True))
    serving += own * (leaving * here).sum(axis=2, keepdims=True)
    return serving


def _cross(profile: Profile, served: FloatArray) -> FloatArray:
    if profile.coactivation is not None:
        return served.transpose(0, 2, 1) @ profile.coactivation @ served / profile.tokens
    mean = np.einsum("le,leg->lg", profile.load / profile.tokens, served)
    return mean[:, :, None] * mean[:, None, :] * (1 - 1 / profile.top_k)


def _over(some: FloatArray | BoolArray, of: FloatArray | IntArray) -> FloatArray:
    """``some`` / ``of``, 0 where there are none."""
    shape = np.broadcast_shapes(some.shape, of.shape)
    share: FloatArray = np.divide(some, of, out=np.zeros(shape), where=of > 0)
    return share
