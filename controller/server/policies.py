"""PolicyService: how pools are looked after."""

import json
from typing import Any

from controller.ledger.ledger import Record
from controller.pool_policies import Kept, PoolPolicies
from controller.server.answers import answering
from controller.server.messages import wire
from controller.server.strangers import Spacing
from placer.v1 import policy_pb2
from placer.v1.policy_pb2_grpc import PolicyServiceServicer

# gRPC names methods as protos do.
# ruff: noqa: N802


class Policies(PolicyServiceServicer):
    def __init__(self, policies: PoolPolicies, refusals: Spacing) -> None:
        self.policies, self.refusals = policies, refusals

    @answering
    async def PutPolicy(self, request: Any) -> Any:
        told = (request.pool, request.policy, request.version, request.reason)
        record = self.policies.put(*told, request.idempotency_key)
        return policy_pb2.PutPolicyResponse(policy=_text(record), version=record.version)

    @answering
    async def GetPolicy(self, request: Any) -> Any:
        if (record := self.policies.newest(request.pool)) is None:
            return policy_pb2.GetPolicyResponse()
        return policy_pb2.GetPolicyResponse(
            policy=_text(record), version=record.version, reason=record.reason, at_s=record.at_s
        )

    @answering
    async def ListPolicies(self, request: Any) -> Any:
        found = self.policies.in_force()
        return policy_pb2.ListPoliciesResponse(policies=wire.listed(_policy, found))

    @answering
    async def DeletePolicy(self, request: Any) -> Any:
        record = self.policies.delete(request.pool, request.version, request.reason)
        return policy_pb2.DeletePolicyResponse(version=record.version)


def _policy(record: Record[Kept]) -> Any:
    return policy_pb2.Policy(
        pool=record.pool, policy=_text(record), version=record.version, reason=record.reason,
        at_s=record.at_s,
    )  # fmt: skip


def _text(record: Record[Kept]) -> str:
    settings = record.value.settings
    return "" if settings is None else json.dumps(settings)
