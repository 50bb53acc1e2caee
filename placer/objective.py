"""Objective: how the engine moves tokens, how many of them a step has, and the limits."""

from dataclasses import dataclass
from typing import Literal, get_args

from placer.bounds import check_bounds
from placer.errors import PlacementError

Dispatch = Literal["allgather", "dedup", "coherent"]
DISPATCHES: tuple[Dispatch, ...] = get_args(Dispatch)

# Tokens that each GPU brings to one step: vLLM's usual token budget for prefill and for mixed
# batches, a well-filled decode batch otherwise.
STEP_TOKENS_PER_GPU = {"prefill": 8192, "mixed": 8192, "decode": 128}


Solver = Literal["highs", "cbc", "cp-sat"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard an optimizer tries. The same effort gives the same placement.

    solver:       of integer programmes
    gap:          share of the optimum that a solver may leave (MoETuner uses 0.025)
    time_limit_s: seconds after which a solver returns the best that it has
    iterations:   exchanges that a local search tries, over all layers
    """

    solver: Solver = "highs"
    gap: float = 0.025
    time_limit_s: float = 60.0
    iterations: int = 1_800_000

    def __post_init__(self) -> None:
        bounds = {"gap": (0, 1e6), "time_limit_s": (0, 1e9), "iterations": (0, 2**48)}
        check_bounds(self, bounds, PlacementError, "effort")


@dataclass(frozen=True, slots=True)
class Objective:
    """What a placement is judged by: the seconds of one step's MoE layers, within limits.

    dispatch:        ``allgather``: every rank gets every token (vLLM's default);
                     ``dedup``: a token goes once to each distinct remote GPU (DeepEP);
                     ``coherent``: a token stays where one of its experts ran (ExFlow)
    tokens_per_gpu:  tokens that each GPU brings to a step
    efficiency:      share of peak FLOPS that grouped expert GEMMs reach
    memory_share:    share of a GPU's memory that weights and KV cache may use
    overlap:         share of the communication that the engine hides behind the experts' work, as
                     far as that lasts (Comet, DeepEP's two-batch overlap); 0: none
    guard:           share of unknown traffic that a plan is made for beside the recorded (guard.py)
    allow_duplicates: whether a GPU may hold the same expert twice
    keep_groups:     whether the experts of a group must stay on one node
    survive_node:    whether every expert must be on two nodes, so that none is lost with one
    uneven:          whether GPUs may hold different numbers of a layer's experts; what bounds a GPU
                     is then its memory over all layers, and not its slots in each
    horizon_s:       seconds that a plan will last: what its moves cost must be won back in them
    busy:            share of them in which the engine takes steps, if the recording does not tell
    max_moved:       share of the slots that one plan may move away from the one that runs
    """

    dispatch: Dispatch = "allgather"
    tokens_per_gpu: int = STEP_TOKENS_PER_GPU["mixed"]
    efficiency: float = 0.5
    memory_share: float = 0.9
    overlap: float = 0.0
    guard: float = 0.0
    allow_duplicates: bool = False
    keep_groups: bool = False
    survive_node: bool = False
    uneven: bool = False
    horizon_s: float = 60.0
    busy: float = 1.0
    max_moved: float = 0.1

    def __post_init__(self) -> None:
        if self.dispatch not in DISPATCHES:
            raise PlacementError(
                f"unknown dispatch {self.dispatch!r}: use one of {', '.join(DISPATCHES)}"
            )
        bounds = {
            "tokens_per_gpu": (1, 2**31),
            "efficiency": (1e-6, 1),
            "memory_share": (1e-6, 1),
            "overlap": (0, 1),
            "busy": (1e-6, 1),
            "guard": (0, 1),
            "horizon_s": (0, 1e12),
            "max_moved": (0, 1),
        }
        check_bounds(self, bounds, PlacementError, "objective")
