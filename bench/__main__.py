"""Run every benchmark, or those named: python -m bench [eplb] [controller] ...

Those of LONG take many minutes, and run when they are named only.
"""

import sys
from importlib import import_module

# Imported when their turn comes: not every environment has the libraries of all.
BENCHMARKS = (
    "eplb",
    "plan",
    "profile",
    "optimizers",
    "sizes",
    "replan",
    "schedule",
    "agent",
    "controller",
    "prediction",
)
LONG = (
    "autoscale", "elastic", "elastic_kills", "shared_weights", "mutants", "matrix", "verdicts",
    "hostile", "prescheduling", "prescheduling.placements", "front", "picker", "kubernetes",
    "page", "simulate",
)  # fmt: skip

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        if name not in BENCHMARKS + LONG:
            sys.exit(f"unknown benchmark {name!r}: use one of {', '.join(BENCHMARKS + LONG)}")
        import_module(f"bench.{name}").run()
