"""The engines that a request may go to, and what is known of their ranks."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine of a pool, which holds all experts.

    ranks:     data-parallel ranks
    kv_tokens: that each rank has KV room for; 0: not known, so that nobody is turned away for it
    draining:  ranks that take no more requests
    table:     which of the tables its map belongs to
    """

    name: str
    ranks: int
    kv_tokens: int = 0
    draining: frozenset[int] = frozenset()
    table: int = 0
