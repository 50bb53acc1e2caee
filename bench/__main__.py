"""Run every benchmark, or those named: python -m bench [eplb] [optimizers] [replan] ..."""

import sys

from bench import agent, eplb, optimizers, plan, profile, replan, schedule, sizes

BENCHMARKS = {
    "eplb": eplb.run,
    "plan": plan.run,
    "profile": profile.run,
    "optimizers": optimizers.run,
    "sizes": sizes.run,
    "replan": replan.run,
    "schedule": schedule.run,
    "agent": agent.run,
}

if __name__ == "__main__":
    for name in sys.argv[1:] or BENCHMARKS:
        BENCHMARKS[name]()
