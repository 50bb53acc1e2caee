"""Which ranks have the KV of which prompt prefixes, by the hashes of their blocks."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from placer.arrays import FloatArray, IntArray

MOST_BLOCKS = 2**18  # remembered, of all ranks; the least recently used go first


class Prefixes:
    """What was sent where; engines may have dropped some of it, which costs a wrong guess.

    block_tokens: of a block, as the engines' prefix caches have it
    """

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._ranks: OrderedDict[int, int] = OrderedDict()  # of each hash, a bit for each rank

    def cached(self, prefix: Sequence[int], length: int, ranks: int) -> FloatArray:
        """[ranks] tokens of a prompt that each has. The last token is always computed."""
        tokens = np.zeros(ranks)
        left, blocks = (1 << ranks) - 1, 0
        for block in prefix:
            now = left & self._ranks.get(block, 0)
            if now != left:  # those that drop out have all blocks so far
                self._fill(tokens, left ^ now, blocks, length)
                left = now
                if not left:
                    return tokens
            blocks += 1
        self._fill(tokens, left, blocks, length)
        return tokens

    def _fill(self, tokens: FloatArray, held: int, blocks: int, length: int) -> None:
        """held: a bit for each rank that has so many blocks"""
        if not blocks:
            return
        found = min(blocks * self.block_tokens, max(length - 1, 0))
        while held:
            lowest = held & -held
            tokens[lowest.bit_length() - 1] = found
            held ^= lowest

    def remember(self, prefix: Sequence[int], rank: int) -> None:
        for block in prefix:
            self._ranks[block] = self._ranks.get(block, 0) | 1 << rank
            self._ranks.move_to_end(block)
        while len(self._ranks) > MOST_BLOCKS:
            self._ranks.popitem(last=False)

    def renumber(self, before: IntArray) -> None:
        """before: [ranks] the number that each had until now; -1 if it is new"""
        kept = [(1 << new, int(old)) for new, old in enumerate(before.tolist()) if old >= 0]
        for block, held in list(self._ranks.items()):
            if now := sum(bit for bit, old in kept if held >> old & 1):
                self._ranks[block] = now
            else:
                del self._ranks[block]
