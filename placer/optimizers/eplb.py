"""eplb: DeepSeek's expert-parallel load balancer.

Input: loads alone. (1) Pack expert groups onto nodes, heaviest first into the lightest node with
room; (2) inside a node, give each redundant slot to the expert with the largest load per replica;
(3) pack the replicas onto the node's GPUs, heaviest first into the lightest GPU with a free slot.
Where nodes do not divide the groups the whole cluster counts as one node with one group (the
"global" policy). packing.py has the algorithm, which is DeepSeek's map for map.

DeepSeek's packing may put two replicas of an expert on one GPU, where the second is of no use;
unless the objective allows it, such slots are then exchanged with other GPUs' as cheaply as
possible. It loses where traffic matters more than balance: it sees no affinity and no current
placement, so it scatters experts and moves nearly all of them.
"""

from placer.packing import hierarchical, rebalance, separate
from placer.plan import Solution
from placer.problem import Problem


def optimize(problem: Problem) -> Solution:
    topology = problem.topology
    table = rebalance(
        problem.profile.load, problem.slots, problem.model.groups, topology.nodes, topology.gpus
    )
    if not problem.objective.allow_duplicates:
        nodes = topology.nodes if hierarchical(problem.model.groups, topology.nodes) else 1
        table = separate(table, problem.profile.load, topology.gpus, nodes)
    return Solution(problem.placement(table))
