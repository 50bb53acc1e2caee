"""Reasons to change something: one policy a file, each a pure function, in the order in which they
are asked. The first that wants a change has it begun, if nothing else is at work."""

from controller.policies.autoscale import autoscale
from controller.policies.policy import Policy
from controller.policies.rebalance import rebalance

POLICIES: dict[str, Policy] = {"rebalance": rebalance, "autoscale": autoscale}
