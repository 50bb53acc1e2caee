"""Whether a worker may apply a plan; asked before it is handed over, and by the worker again."""

from placer.checks import violations
from placer.plan import Plan
from placer.worker import Worker


def refusal(plan: Plan, worker: Worker) -> str:
    """Why ``worker`` must not apply ``plan``; empty if it may."""
    placement = plan.placement
    if not worker.can_apply:
        return "the engine's expert load balancer is off: start it with --enable-eplb"
    if (placement.layers, placement.experts) != (worker.layers, worker.experts):
        name = f"{plan.model.name}, " if plan.model else ""
        return (
            f"the plan is for {name}{placement.layers} layers x {placement.experts} experts and "
            f"the engine serves {worker.model}, {worker.dims}: plan for that model"
        )
    if placement.gpus != worker.ep_size:
        return (
            f"the plan is for {placement.gpus} ranks and the engine has {worker.ep_size}"
            f": plan with --gpus {worker.ep_size}"
        )
    if placement.empty:
        return (
            f"the plan leaves {placement.empty} slots empty, which vLLM cannot serve"
            ": plan without --uneven, or with --optimizer joint, which fills redundant slots"
        )
    if placement.slots != worker.slots:
        return (
            f"the plan has {placement.slots} slots a layer and the engine {worker.slots}"
            f": plan with --redundant {worker.slots - worker.experts}"
        )
    broken = violations(plan.placement, plan.objective)
    return broken[0] if broken else ""
