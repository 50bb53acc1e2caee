"""How traffic varies between blocks of sequences, and the sampling noise that follows from it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from placer.arrays import FloatArray, IntArray, pair_sums

FEWEST_BLOCKS = 10  # fewer say nothing of how traffic varies
SHRINKAGE = 0.2  # of covariances, which few blocks make look smaller than they are


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """How traffic varies from one block of sequences to the next: sums over blocks, which add up.

    With x [layers, experts] a block's tokens by expert and n its tokens:
    products: [layers, experts, experts] sum of x x^T
    lengths:  [layers, experts] sum of n x
    squares:  sum of n^2
    blocks:   how many there are
    """

    products: FloatArray
    lengths: FloatArray
    squares: float
    blocks: int

    @property
    def is_possible(self) -> bool:
        sums = (self.products, self.lengths, np.array(self.squares))
        return all(bool(np.isfinite(one).all() and (one >= 0).all()) for one in sums)


@dataclass(frozen=True, slots=True, eq=False)
class Noise:
    """Sampling noise of ``load / tokens``: how far another recording of this traffic would be off.

    variance:   [layers, experts]
    covariance: [layers, experts, experts] with a zero diagonal; None: experts vary by themselves
    """

    variance: FloatArray
    covariance: FloatArray | None = None

    def times(self, factor: FloatArray | float) -> "Noise":
        """factor: of the variance; [layers], or one of all"""
        by_layer = np.reshape(factor, (-1, 1))
        covariance = None if self.covariance is None else self.covariance * by_layer[:, :, None]
        return Noise(self.variance * by_layer, covariance)

    def of(self, experts: IntArray, weight: FloatArray) -> FloatArray:
        """[layers, sums] variance of weighted sums of experts, both [layers, sums, terms]."""
        same = experts[:, :, :, None] == experts[:, :, None, :]
        both = (same @ weight[:, :, :, None])[:, :, :, 0]  # an expert may come twice
        variance = np.take_along_axis(self.variance[:, None], experts, axis=2)
        found: FloatArray = (variance * weight * both).sum(axis=2)
        if self.covariance is not None:
            found += pair_sums(self.covariance, (experts, weight), (experts, weight))
        return np.maximum(found, 0.0)  # rounding may leave less


def sampling_noise(load: FloatArray, tokens: float, spread: Spread | None) -> Noise:
    """From the variation between blocks of sequences (a ratio estimator's), since the tokens of a
    sequence resemble each other; without enough blocks as if every token were drawn by itself.

    load: [layers, experts], of so many tokens
    """
    share = load / tokens
    if spread is None or spread.blocks < FEWEST_BLOCKS:
        return Noise(share / tokens)
    variance, covariance = np.empty_like(share), np.empty_like(spread.products)
    for layer, (used, lengths) in enumerate(zip(share, spread.lengths, strict=True)):
        residual = covariance[layer]  # a view
        np.subtract(spread.products[layer], used[:, None] * lengths, out=residual)
        residual -= lengths[:, None] * used
        residual += spread.squares * used[:, None] * used
        residual *= spread.blocks / (spread.blocks - 1) / tokens**2
        variance[layer] = np.maximum(residual.diagonal(), 0.0)  # rounding may leave less
        residual *= 1 - SHRINKAGE
        np.fill_diagonal(residual, 0.0)
    return Noise(variance, covariance)


def merge(spreads: Sequence[Spread | None]) -> Spread | None:
    known = [spread for spread in spreads if spread is not None]
    if len(known) < len(spreads):
        return None
    return Spread(
        products=np.sum([spread.products for spread in known], axis=0),
        lengths=np.sum([spread.lengths for spread in known], axis=0),
        squares=sum(spread.squares for spread in known),
        blocks=sum(spread.blocks for spread in known),
    )
