"""Flows of least cost through a network, in whole numbers: the door to OR-Tools' solver of them."""

from dataclasses import dataclass

from placer.arrays import IntArray

SOURCE, SINK = 0, 1  # nodes


@dataclass(frozen=True, slots=True, eq=False)
class Arcs:
    """Each array is [arcs]; ``cost`` is of a unit, and may be below zero."""

    tail: IntArray
    head: IntArray
    capacity: IntArray
    cost: IntArray


def cheapest_flow(arcs: Arcs, most: int) -> IntArray:
    """[arcs] units on each, of up to ``most`` from the source to the sink; optimal, and the same
    each time (cost scaling: Goldberg, 1997)."""
    from ortools.graph.python.min_cost_flow import SimpleMinCostFlow  # slow to load

    solver = SimpleMinCostFlow()
    columns = (arcs.tail, arcs.head, arcs.capacity, arcs.cost)
    index = solver.add_arcs_with_capacity_and_unit_cost(*columns)
    solver.add_arc_with_capacity_and_unit_cost(SOURCE, SINK, most, 0)
    solver.set_node_supply(SOURCE, most)
    solver.set_node_supply(SINK, -most)
    status = solver.solve()
    assert status == solver.OPTIMAL, status  # the arc past the network makes all flows possible
    units: IntArray = solver.flows(index)
    return units
