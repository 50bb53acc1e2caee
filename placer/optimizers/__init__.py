"""The optimizers: one algorithm a file, one line in ``OPTIMIZERS``.

Each file has an ``optimize``: a function of a Problem, deterministic, that neither reads nor
changes anything else. A file is imported when its optimizer is asked for: some bring a solver.
"""

from collections.abc import Callable
from importlib import import_module

from placer.errors import PlacementError
from placer.names import lookup
from placer.plan import Solution
from placer.problem import Problem

Optimizer = Callable[[Problem], Solution]

OPTIMIZERS: dict[str, str] = {
    "linear": "placer.optimizers.linear",
    "eplb": "placer.optimizers.eplb",
    "joint": "placer.optimizers.joint",
    "moetuner": "placer.optimizers.moetuner",
    "exflow": "placer.optimizers.exflow",
    "exhaustive": "placer.optimizers.exhaustive",
    "cocluster": "placer.optimizers.cocluster",
    "eldr": "placer.optimizers.eldr",
}

UNEVEN = ("moetuner",)  # those that know Objective.uneven


def optimizer(name: str) -> Optimizer:
    """The optimizer of that name. Raises PlacementError with the nearest name."""
    found: Optimizer = import_module(known(name)).optimize
    return found


def known(name: str) -> str:
    """Its module, which is not read. Raises PlacementError with the nearest name."""
    return lookup("optimizer", name, OPTIMIZERS, PlacementError)
