"""Run every benchmark, or those named: python -m bench [eplb] [plan] [profile] [schedule]."""

import sys

from bench import eplb, plan, profile, schedule

BENCHMARKS = {
    "eplb": eplb.run,
    "plan": plan.run,
    "profile": profile.run,
    "schedule": schedule.run,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        BENCHMARKS[name]()
