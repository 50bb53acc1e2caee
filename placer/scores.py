"""Scores of placements while planning, each once, with the homes that requests have there."""

from functools import lru_cache

from placer.cost import Score, score
from placer.cost.homes import chosen
from placer.cost.owned import cluster_homes, foreseen, scheduled
from placer.placement import Placement
from placer.plan import Comparison, Homes, Solution
from placer.problem import Problem
from placer.tables import token_identity
from placer.trace import Trace


def knows_homes(problem: Problem) -> bool:
    """Whether requests may be at home where their experts are, and that saves anything."""
    return problem.profile.clusters is not None and problem.objective.dispatch == "dedup"


def runs_at_home(problem: Problem) -> bool:
    """Whether they are already in what runs."""
    return problem.current is not None and knows_homes(problem)


@lru_cache(maxsize=16)  # asked for again by make_plan
def scored(
    problem: Problem,
    placement: Placement,
    trace: Trace | None,
    only_timed: bool = False,
    at_home: bool = False,
) -> Score:
    """at_home: whether requests are at home where their experts are"""
    homes = scheduled(problem.profile, placement, trace) if at_home else None
    return score(problem, placement, trace, only_timed, homes)


def timed(
    problem: Problem, placement: Placement, trace: Trace | None, at_home: bool = False
) -> Score:
    """Its seconds and balance. A trace tells everything at once."""
    return scored(problem, placement, trace, trace is None, at_home)


def held_out(
    problem: Problem, before: Placement, after: Solution, fit: Trace | None, holdout: Trace
) -> Comparison:
    """On sequences that the plan was not made from: what is known of them is what ``fit``'s tokens
    did that are like theirs."""

    def of(placement: Placement, at_home: bool) -> Score:
        homes = None
        if at_home and fit is not None:
            told = foreseen(fit, placement, token_identity(holdout), holdout.seq_lens)
            homes = chosen(told, holdout.seq_lens)
        return score(problem, placement, holdout, homes=homes)

    return Comparison(of(before, runs_at_home(problem)), of(after.placement, after.scheduled))


def homes_of(problem: Problem, placement: Placement) -> Homes:
    """Where a plan's requests are at home."""
    clusters = problem.profile.clusters
    assert clusters is not None  # knows_homes
    return Homes.of(clusters, cluster_homes(problem.profile, placement))
