"""Plan from Python: loads in, a checked placement out, no files between.

pip install 'moe-placer[plan]'
python examples/plan.py
"""

import numpy as np

from placer import model, topology
from placer.objective import Objective
from placer.plan import Provenance, Solution
from placer.planner import make_plan, solve
from placer.problem import Problem
from placer.profile import Profile


def main() -> None:
    shape = model.preset("mixtral-8x7b")
    # [layers, experts] tokens that each expert served: one of eight is hot in every layer.
    load = np.full((shape.layers, shape.experts), 1000.0)
    load[np.arange(shape.layers), np.arange(shape.layers) % shape.experts] = 6000.0
    problem = Problem(
        model=shape,
        topology=topology.preset("h100").resized(4),
        profile=Profile(load, shape.top_k, tokens=load[0].sum() / shape.top_k, sequences=0),
        slots=shape.experts + 4,  # a redundant one on each GPU
        objective=Objective("allgather"),
    )
    solution = solve(problem, "joint")
    if not isinstance(solution, Solution):  # Infeasible, with what would do
        raise SystemExit(solution.reason)
    plan = make_plan(problem, solution, Provenance("joint"))
    print(plan.reason)
    for gpu, slots in enumerate(solution.placement.physical_to_logical[0].reshape(4, -1)):
        print(f"first layer, GPU {gpu}: experts {slots.tolist()}")


if __name__ == "__main__":
    main()
