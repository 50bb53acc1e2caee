"""Run every benchmark, or those named: python -m bench [eplb] [plan] [profile]."""

import sys

from bench import eplb, plan, profile

BENCHMARKS = {"eplb": eplb.run, "plan": plan.run, "profile": profile.run}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        BENCHMARKS[name]()
