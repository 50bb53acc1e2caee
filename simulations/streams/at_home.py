"""The plan made for activations at home (LAR) alone: what can be had, as uneven as it is."""

import numpy as np
from scipy.optimize import linear_sum_assignment

from placer.arrays import FloatArray, IntArray
from placer.clusters import loads_by_request
from placer.cost.homes import chosen
from placer.placement import Placement
from placer.problem import Problem

STARTS, ROUNDS = 8, 25


def made_for_lar(problem: Problem) -> Placement:
    """Of its trace's requests, alternating until neither finds more: experts where most of their
    activations are at home, as many of a layer on each GPU (exact, given the requests), and
    requests where most of their experts are, as many tokens on each. The best of some starts, from
    requests that are alike."""
    trace = problem.trace
    assert trace is not None  # benchmarks have one
    used, gpus = loads_by_request(trace).astype(np.float64), problem.topology.gpus
    flat, lots = used.reshape(len(used), -1), np.random.default_rng(problem.seed)
    directions = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
    best, most = problem.linear, -1.0
    for _ in range(STARTS):
        like = directions[lots.choice(len(used), gpus, replace=False)]
        homes = chosen(directions @ like.T * trace.seq_lens[:, None], trace.seq_lens)
        least = -1.0
        for _ in range(ROUNDS):
            owned = (np.eye(gpus)[homes].T @ flat).reshape(gpus, *used.shape[1:])
            experts = _experts(owned.transpose(1, 2, 0))
            local = np.einsum("rle,leg->rg", used, np.eye(gpus)[experts], optimize=True)
            homes = chosen(local, trace.seq_lens)
            found = float(local[np.arange(len(homes)), homes].sum())
            if found <= least:
                break
            least = found
            if found > most:
                best, most = problem.partition(experts), found
    return best


def _experts(near: FloatArray) -> IntArray:
    """[layers, experts] the GPU of each. near: [layers, experts, gpus] activations"""
    each = -(-near.shape[1] // near.shape[2])
    seats = np.repeat(near, each, axis=2)
    return np.stack([linear_sum_assignment(-layer)[1] // each for layer in seats])
