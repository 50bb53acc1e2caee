"""Schedules of requests: a whole batch at once, or a stream one after another."""

from dataclasses import dataclass

import numpy as np

from controller.router.scheduling.request import Decision, Request
from controller.router.scheduling.scheduler import Scheduler
from placer.arrays import FloatArray, IntArray
from placer.placement import Placement
from placer.tables import TokenTable
from simulations.streams.worlds import Requests


@dataclass(frozen=True)
class Stream:
    """order: [requests] sequences drawn with replacement; rank: [requests] where each went"""

    order: IntArray
    rank: IntArray


def drawn(count: int, requests: int, seed: int) -> IntArray:
    return np.random.default_rng(seed).integers(requests, size=count)


def asked(requests: Requests, at: int, decodes: bool) -> Request:
    """What is known of it: its prompt, and that it may generate as many as anybody. An engine that
    decodes does not compute prompts: theirs were not recorded."""
    if decodes:
        return Request(requests.prompt(at), 0, int(requests.served.seq_lens.max()))
    return Request(requests.prompt(at), int(requests.prompts[at]), 0)


def streamed(
    scheduler: Scheduler, requests: Requests, order: IntArray, decodes: bool, running: int
) -> Stream:
    """Each is chosen for as it comes, and ends when ``running`` others have come after it."""
    every = [asked(requests, at, decodes) for at in range(requests.served.sequences)]
    lens = requests.served.seq_lens
    decisions: list[Decision] = []
    for index, at in enumerate(order.tolist()):
        if index >= running:
            old = decisions[index - running]
            scheduler.began(old)
            generated = int(lens[order[index - running]]) if decodes else 0
            scheduler.ended(old, generated)
        decisions.append(scheduler.choose(every[at]))
    return Stream(order, np.array([one.rank for one in decisions]))


def foreseen(table: TokenTable, values: FloatArray, requests: Requests) -> FloatArray:
    """[sequences, ranks] a table's values summed over prompts, as if those were what is served.

    values: [rows, ranks] of each of the table's tokens
    """
    rows = values[table.vocabulary.rows(requests.known)]
    sums = np.add.reduceat(rows, np.cumsum(requests.prompts) - requests.prompts, axis=0)
    scale = requests.served.seq_lens / requests.prompts
    found: FloatArray = sums * scale[:, None]
    return found


def local_activations(requests: Requests, placement: Placement) -> FloatArray:
    """[sequences, gpus] share of each sequence's activations that a GPU can serve."""
    trace, held = requests.served, placement.copies > 0
    found = np.zeros((trace.tokens, placement.gpus))
    for layer in range(trace.layers):
        found += held[layer][trace.expert_ids[:, layer]].sum(axis=1)
    starts = np.cumsum(trace.seq_lens) - trace.seq_lens
    sums: FloatArray = np.add.reduceat(found, starts, axis=0)
    return sums / (trace.seq_lens[:, None] * (trace.layers * trace.top_k))


def imbalance(tokens: FloatArray, rank: IntArray, ranks: int, window: int | None = None) -> float:
    """Tokens of the rank with most over the mean; in windows of so many requests, their mean."""
    size = window or len(rank)
    found = []
    for start in range(0, len(rank) - size + 1, size):
        some = slice(start, start + size)
        owned = np.bincount(rank[some], tokens[some], ranks)
        found.append(owned.max() / owned.mean())
    return float(np.mean(found))
