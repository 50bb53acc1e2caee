"""Run every benchmark, or those named: python -m bench [eplb] [controller] ..."""

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
)

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        if name not in BENCHMARKS:
            sys.exit(f"unknown benchmark {name!r}: use one of {', '.join(BENCHMARKS)}")
        import_module(f"bench.{name}").run()
