"""Run every benchmark but `controller`, or those named: python -m bench [eplb] [replan] ..."""

import sys

from bench import agent, eplb, optimizers, plan, profile, replan, schedule, sizes


def controller() -> None:
    """Imported when asked for: engines' environments lack its libraries."""
    from bench.controller import run

    run()


BENCHMARKS = {
    "eplb": eplb.run,
    "plan": plan.run,
    "profile": profile.run,
    "optimizers": optimizers.run,
    "sizes": sizes.run,
    "replan": replan.run,
    "schedule": schedule.run,
    "agent": agent.run,
    "controller": controller,
}
ALONE = {"controller"}  # wants the host to itself, for over a minute

if __name__ == "__main__":
    for name in sys.argv[1:] or [name for name in BENCHMARKS if name not in ALONE]:
        BENCHMARKS[name]()
