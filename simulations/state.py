"""What the kernels of an engine work on: what hardware does, and how its ranks stand."""

from typing import NamedTuple

from placer.arrays import FloatArray, IntArray


class Speeds(NamedTuple):
    """What a rank's hardware does with a model, but for the experts.

    overhead_s:    of a step: launches, sampling, the scheduler
    dense_read_s:  reading what is no expert; dense_token_s: a token's arithmetic there
    kv_token_s:    reading a token of context
    token_budget:  of a rank's step, and prompt_budget: of prompts in it; kv_tokens: that a rank has
                   room for
    switch_s:      that a change of width holds a step up
    request_s:     of a request that begins to answer, whatever its length: taking it in
    """

    overhead_s: float
    dense_read_s: float
    dense_token_s: float
    kv_token_s: float
    token_budget: int = 8192
    kv_tokens: int = 400_000
    switch_s: float = 0.1
    prompt_budget: int = 2**30
    request_s: float = 0.0


class State(NamedTuple):
    """Arrays that the kernels change. R: ranks of all engines, as many of each as the widest has.

    [requests] at_s prompt output; first_s, last_s: of its tokens, inf until it has them; ends: the
               engine's step that brings the last; following: in its rank's queue; rank: of R
    [engines]  begun_s, end_s: of the steps that run (busy) or ran last; many, each_s, more_s: how
               many these are, and their formula; ranks, wanted: now, and from the next step on;
               closed: takes no requests; pause_s: that the next takes longer; slow: factor of its
               steps; steps, busy_s: so far; prefilled, decoded: tokens; finished,
               prompts: requests, and the tokens of their prompts; table, [engines, GRID]: seconds
               of a step's experts; ttft, gaps: histograms
    [R]        seated: requests that run, begun: and those whose prompt the step completes; due:
               the step that brings the first of their last tokens, or an earlier one; kv:
               tokens that they keep or will; context: that they have; head, tail: of the queue;
               progress: tokens of the head that are computed, and chunk: that each of the steps
               that run computes, if none completes it; queued; running, [R, SEATS]
    events: what came of requests, as many as told[0] says

    Of prefix caches (caches.py):
    blocks, begins: what prompts begin with (arrivals.Prefixes); told[1]: tokens of a block, and
               told[2]: how many blocks there are
    cached:    [places, 3] a rank's block, running requests that have it, and if there are none,
               where it waits
    line:      [R, 3] of what waits: both ends, and tokens
    waiting:   [blocks and requests, 2] who is behind it in the line, and a request's own tokens
    hits:      [engines] tokens of prompts that were cached
    """

    at_s: FloatArray
    prompt: IntArray
    output: IntArray
    ends: IntArray
    first_s: FloatArray
    last_s: FloatArray
    following: IntArray
    rank: IntArray
    begun_s: FloatArray
    end_s: FloatArray
    many: IntArray
    each_s: FloatArray
    more_s: FloatArray
    busy: IntArray
    ranks: IntArray
    wanted: IntArray
    closed: IntArray
    pause_s: FloatArray
    slow: FloatArray
    table: FloatArray
    steps: IntArray
    busy_s: FloatArray
    prefilled: IntArray
    decoded: IntArray
    finished: IntArray
    prompts: IntArray
    seated: IntArray
    begun: IntArray
    due: IntArray
    kv: IntArray
    context: IntArray
    head: IntArray
    tail: IntArray
    progress: IntArray
    chunk: IntArray
    queued: IntArray
    running: IntArray
    ttft: FloatArray
    gaps: FloatArray
    blocks: IntArray
    begins: IntArray
    cached: IntArray
    line: IntArray
    waiting: IntArray
    hits: IntArray
    events: IntArray
    told: IntArray
