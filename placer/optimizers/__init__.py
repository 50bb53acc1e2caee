"""The optimizers: one algorithm a file, one line in ``OPTIMIZERS``.

Each is a function of a Problem, deterministic, that neither reads nor changes anything else.
"""

from collections.abc import Callable

from placer.errors import PlacementError
from placer.names import lookup
from placer.optimizers import eplb, exhaustive, linear
from placer.plan import Solution
from placer.problem import Problem

Optimizer = Callable[[Problem], Solution]

OPTIMIZERS: dict[str, Optimizer] = {
    "linear": linear.optimize,
    "eplb": eplb.optimize,
    "exhaustive": exhaustive.optimize,
}


def optimizer(name: str) -> Optimizer:
    """The optimizer of that name. Raises PlacementError with the nearest name."""
    return lookup("optimizer", name, OPTIMIZERS, PlacementError)
