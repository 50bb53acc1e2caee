"""A controller of nothing: it speaks the real services, keeps what it is told in memory, and counts
what engines would be asked to do."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc

from placer.v1 import fleet_pb2, placement_pb2, policy_pb2
from placer.v1.fleet_pb2_grpc import FleetServiceServicer, add_FleetServiceServicer_to_server
from placer.v1.placement_pb2_grpc import (
    PlacementServiceServicer,
    add_PlacementServiceServicer_to_server,
)
from placer.v1.policy_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server

# gRPC names methods as protos do.
# ruff: noqa: N802

State = placement_pb2.PlanState
PROPOSED, APPROVED = placement_pb2.PLAN_STATE_PROPOSED, placement_pb2.PLAN_STATE_APPROVED
Code = grpc.StatusCode


class StandIn(FleetServiceServicer, PlacementServiceServicer, PolicyServiceServicer):
    """
    calls:   of methods that change something, by method
    engine:  what engines were asked for, by what it is about; twice is once too often
    boundary: told before and after each call that changes something
    carries: carries approvals and scalings out at once, as an engine that takes no time
    """

    def __init__(self, ledger: str = "ledger-1") -> None:
        self.ledger, self.carries = ledger, True
        self.calls: Counter[str] = Counter()
        self.engine: Counter[str] = Counter()
        self.pools: dict[str, Any] = {}
        self.policies: dict[str, Any] = {}
        self.plans: dict[str, Any] = {}
        self.operations: dict[str, Any] = {}
        self.reported: dict[str, Any] = {}
        self.boundary: Callable[[str], object] = lambda where: None
        self.refuses: Callable[[str, Any], str] = lambda method, request: ""
        self._keys: dict[str, Any] = {}
        self._records: list[Any] = []
        self._changed = threading.Condition(threading.RLock())
        self._ends = False
        self._server: Any = None

    # What a test says.

    def pool(self, name: str, model: str, pods: list[str], engines: int = 1) -> None:
        """Engines with a rank in each of these pods, by uid, as many each."""
        with self._changed:
            found = self.pools[name] = fleet_pb2.Pool(
                name=name, model=model, mode="advisory", outcome="hold",
                reason="0 tokens: too few to tell", decided_s=1.0, balancedness=0.61,
            )  # fmt: skip
            each = len(pods) // engines
            for number in range(engines):
                mine = pods[number * each : (number + 1) * each]
                rank_pods = [
                    fleet_pb2.RankPod(
                        rank=rank, worker=f"worker-{rank}", pod_uid=uid, node="node-1"
                    )
                    for rank, uid in enumerate(mine)
                ]
                found.engines.add(
                    name=f"engine-{number}", ranks=each, workers=each, rank_pods=rank_pods
                )
            found.stock.CopyFrom(fleet_pb2.Stock(active=len(pods), traffic=len(pods)))

    def propose(self, pool: str, digest: str = "", moves: Any = ()) -> Any:
        with self._changed:
            number = len(self.plans) + 1
            plan = placement_pb2.Plan(
                id=f"plan-{number}", pool=pool, state=PROPOSED, version=1, moved=3,
                moved_bytes=1000,
                digest=digest or f"sha256:{number:064x}", epoch=1000 + number, gain=0.2,
                ledger_id=self.ledger, reason="a step takes 20% less time",
                file=json.dumps({"moves": list(moves)}).encode(),
            )  # fmt: skip
            self.plans[plan.id] = plan
            self._write("plan", plan.id, pool)
            return plan

    def become(self, plan: Any, state: Any) -> None:
        with self._changed:
            plan.state, plan.version = state, plan.version + 1
            self._write("plan", plan.id, plan.pool)

    def applied(self, plan: Any) -> None:
        """Every rank says so."""
        with self._changed:
            del plan.acknowledgements[:]
            for engine in self.pools[plan.pool].engines:
                engine.digest, engine.epoch = plan.digest, plan.epoch
                for pod in engine.rank_pods:
                    plan.acknowledgements.add(
                        engine=engine.name, rank=pod.rank, worker=pod.worker, pod=pod.pod_uid,
                        epoch=plan.epoch, digest=plan.digest,
                    )  # fmt: skip
            self.become(plan, placement_pb2.PLAN_STATE_APPLIED)

    def serve(self, port: int = 0) -> int:
        """Its port, on this host."""
        self._ends, self._server = False, grpc.server(ThreadPoolExecutor(8))
        add_FleetServiceServicer_to_server(self, self._server)
        add_PlacementServiceServicer_to_server(self, self._server)
        add_PolicyServiceServicer_to_server(self, self._server)
        found = int(self._server.add_insecure_port(f"127.0.0.1:{port}"))
        self._server.start()
        return found

    def away(self) -> None:
        """Nobody answers any more."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()
        self._server.stop(grace=None).wait()

    # What an operator asks.

    def Status(self, request: Any, context: Any) -> Any:
        with self._changed:
            pools = [pool for _, pool in sorted(self.pools.items())]
            return fleet_pb2.StatusResponse(pools=pools, ledger_id=self.ledger)

    def List(self, request: Any, context: Any) -> Any:
        with self._changed:
            found = [plan for plan in self.plans.values() if plan.pool == request.pool]
            answer = placement_pb2.ListResponse(plans=found[::-1])
            for plan in answer.plans:
                plan.ClearField("file")
                plan.ClearField("acknowledgements")
            return answer

    def Get(self, request: Any, context: Any) -> Any:
        with self._changed:
            if request.plan_id not in self.plans:
                context.abort(Code.NOT_FOUND, f"no plan {request.plan_id}")
            return placement_pb2.GetResponse(plan=self.plans[request.plan_id])

    def Operations(self, request: Any, context: Any) -> Any:
        with self._changed:
            found = [one for one in self.operations.values() if one.pool == request.pool]
            return fleet_pb2.OperationsResponse(operations=found[::-1])

    def Watch(self, request: Any, context: Any) -> Iterator[Any]:
        at, end = request.cursor, len(self._records)
        for cursor, record in enumerate(self._records[at:end], start=at + 1):
            yield placement_pb2.WatchResponse(record=record, cursor=cursor)
        yield placement_pb2.WatchResponse(synced=True, cursor=end)
        while context.is_active():
            with self._changed:
                self._changed.wait_for(partial(self._is_news, end), 0.5)
                if self._ends:
                    return
                found, at, end = self._records[end:], end, len(self._records)
            for cursor, record in enumerate(found, start=at + 1):
                yield placement_pb2.WatchResponse(record=record, cursor=cursor)

    def ListPolicies(self, request: Any, context: Any) -> Any:
        with self._changed:
            kept = [one for one in self.policies.values() if one.policy]
            return policy_pb2.ListPoliciesResponse(policies=kept)

    def GetPolicy(self, request: Any, context: Any) -> Any:
        with self._changed:
            kept = self.policies.get(request.pool, policy_pb2.Policy())
            return policy_pb2.GetPolicyResponse(
                policy=kept.policy, version=kept.version, reason=kept.reason
            )

    def PutPolicy(self, request: Any, context: Any) -> Any:
        with self._asked("PutPolicy", request, context):
            kept = self.policies.get(request.pool, policy_pb2.Policy())
            if kept.version != request.version:
                context.abort(Code.ABORTED, f"{request.pool} is at version {kept.version}")
            kept = policy_pb2.Policy(
                pool=request.pool, policy=request.policy, version=kept.version + 1,
                reason=request.reason,
            )  # fmt: skip
            self.policies[request.pool] = kept
            self._write("policy", request.pool, request.pool)
            return policy_pb2.PutPolicyResponse(policy=kept.policy, version=kept.version)

    def DeletePolicy(self, request: Any, context: Any) -> Any:
        with self._asked("DeletePolicy", request, context):
            version = self.policies[request.pool].version + 1
            self.policies[request.pool] = policy_pb2.Policy(pool=request.pool, version=version)
            self._write("policy", request.pool, request.pool)
            return policy_pb2.DeletePolicyResponse(version=version)

    def Approve(self, request: Any, context: Any) -> Any:
        with self._asked("Approve", request, context):
            plan = self.plans[request.plan_id]
            if request.idempotency_key not in self._keys:
                if plan.state != PROPOSED or request.digest != plan.digest:
                    context.abort(Code.FAILED_PRECONDITION, f"{plan.id} does not wait for that")
                self._keys[request.idempotency_key] = plan
                plan.approver = request.approver
                self.become(plan, APPROVED)
                if self.carries:
                    self.engine[f"apply {plan.digest}"] += 1
                    self.applied(plan)
            return placement_pb2.ApproveResponse(plan=plan)

    def Reject(self, request: Any, context: Any) -> Any:
        with self._asked("Reject", request, context):
            plan = self.plans[request.plan_id]
            if plan.version != request.version:
                context.abort(Code.ABORTED, f"{plan.id} is at version {plan.version}")
            self.become(plan, placement_pb2.PLAN_STATE_REJECTED)
            return placement_pb2.RejectResponse(plan=plan)

    def ReportCapacity(self, request: Any, context: Any) -> Any:
        with self._asked("ReportCapacity", request, context):
            self.reported[request.pool] = request
            return fleet_pb2.ReportCapacityResponse(stock=self.pools[request.pool].stock)

    def ScaleTo(self, request: Any, context: Any) -> Any:
        if request.dry_run:
            if why := self.refuses("ScaleTo", request):
                context.abort(Code.FAILED_PRECONDITION, why)
            return fleet_pb2.ScaleToResponse()
        with self._asked("ScaleTo", request, context):
            known = self._keys.get(request.idempotency_key)
            if known is None:
                known = self._keys[request.idempotency_key] = self._begin(request)
                if self.carries:
                    self.scaled(known)
            return fleet_pb2.ScaleToResponse(operation=known)

    def _is_news(self, end: int) -> bool:
        return len(self._records) > end or self._ends

    def _nothing(self, request: Any, context: Any) -> Any:
        context.abort(Code.UNIMPLEMENTED, "no operator asks for that")

    Apply = Plan = Propose = Rollback = Tables = Register = _nothing

    def scaled(self, operation: Any, phase: str = "SUCCEEDED") -> None:
        """The operation ends: the pool's one engine has the pods that are ready, or the first."""
        with self._changed:
            operation.phase = fleet_pb2.OperationPhase.Value(f"OPERATION_PHASE_{phase}")
            if phase == "SUCCEEDED":
                pool = self.pools[operation.pool]
                [engine] = pool.engines
                before = [pod.pod_uid for pod in engine.rank_pods]
                ready = [one.uid for one in self.reported[operation.pool].ready_pods]
                mine = (before + [uid for uid in ready if uid not in before])[: operation.ranks]
                operation.released_pods.extend(uid for uid in before if uid not in mine)
                self.engine[f"scale {operation.id} to {operation.ranks}"] += 1
                self.pool(pool.name, pool.model, mine)
            self._write("operation", operation.id, operation.pool)

    def _begin(self, request: Any) -> Any:
        id = f"op-{len(self.operations) + 1}"
        operation = self.operations[id] = fleet_pb2.Operation(
            id=id, pool=request.pool, kind="scale", ranks=request.ranks, version=1,
            phase=fleet_pb2.OPERATION_PHASE_RUNNING, idempotency_key=request.idempotency_key,
            progress="engine-0: transferring, 1 of 3", reason=request.reason,
        )  # fmt: skip
        self._write("operation", id, request.pool)
        return operation

    @contextmanager
    def _asked(self, method: str, request: Any, context: Any) -> Iterator[None]:
        with self._changed:
            self.boundary(f"before {method}")
            self.calls[method] += 1
            if why := self.refuses(method, request):
                context.abort(Code.INVALID_ARGUMENT, why)
            yield
            self.boundary(f"after {method}")

    def _write(self, kind: str, id: str, pool: str) -> None:
        self._records.append(fleet_pb2.Record(kind=kind, id=id, pool=pool))
        self._changed.notify_all()


@contextmanager
def serving(stand_in: StandIn, port: int = 0) -> Iterator[str]:
    """Its address."""
    try:
        yield f"127.0.0.1:{stand_in.serve(port)}"
    finally:
        stand_in.away()
