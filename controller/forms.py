"""The forms of all that the ledger keeps, by kind: what is of none of them is left out."""

from controller import pool_policies
from controller.changes import operations, plans, rank_loads, runner
from controller.fleet import acknowledgements, reported, snapshots, traces
from controller.ledger import watched
from controller.ledger.records import Forms
from controller.policies import policy

FORMS: Forms = {
    "plan": plans.FORM,
    rank_loads.KIND: rank_loads.FORM,
    "operation": operations.FORM,
    "abort": runner.ABORT,
    "acknowledgement": acknowledgements.FORM,
    "decision": policy.FORM,
    "snapshot": snapshots.FORM,
    "reading": traces.FORM,
    reported.KIND: reported.FORM,
    pool_policies.KIND: pool_policies.FORM,
    **watched.FORMS,
}
