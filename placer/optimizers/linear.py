"""linear: experts in order, then their first replicas in order.

The map that vLLM starts with, and the yardstick of every other optimizer. Costs nothing and
looks at nothing: it loses wherever loads differ.
"""

from placer.plan import Solution
from placer.problem import Problem


def optimize(problem: Problem) -> Solution:
    return Solution(problem.linear)
