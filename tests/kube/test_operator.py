"""The operator on a real API server, with a controller of nothing."""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from controller.kube.objects import FLEETS, STATEFUL_SETS
from placer.v1 import placement_pb2
from tests.kube import worlds
from tests.kube.cluster import Cluster
from tests.kube.faults import FAULTS
from tests.kube.operators import Running, approve, become, condition, operating, plan_in, until
from tests.kube.proxy import Proxy, between, kubeconfig
from tests.kube.stand_in import StandIn, serving

NAMESPACES = iter(range(10_000))


@dataclass
class World:
    cluster: Cluster
    proxy: Proxy
    stand_in: StandIn
    address: str
    config: Path
    folder: Path
    namespace: str

    def on(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return worlds.on(self.cluster.kubeconfig, lambda api: work(api, *arguments))

    def operating(self, *more: str, **options: Any) -> Any:
        where = ("--namespace", self.namespace, "--lease", self.namespace, *more)
        return operating(self.folder, self.config, self.address, *where, **options)

    def serve(self, name: str, ranks: int = 2, *changes: Any) -> None:
        """A fleet whose engine serves."""
        self.on(worlds.served, self.stand_in, self.namespace, name, ranks)
        self.apply(name, *changes)

    def apply(self, name: str, *changes: Any) -> None:
        self.on(worlds.apply, FLEETS, self.namespace, worlds.fleet(self.namespace, name, *changes))

    def become(self, name: str, reason: str, of: str = "Ready") -> Any:
        return become(self.cluster, self.namespace, name, reason, of)

    def fleet(self, name: str = "chat") -> Any:
        return self.cluster.get("moef", name, "-n", self.namespace)

    def replicas(self, name: str = "chat") -> int:
        found = self.cluster.get("statefulset", name, "-n", self.namespace)
        return int(found["spec"]["replicas"])

    def events(self) -> list[str]:
        """Their reasons, as they came: their times are whole seconds."""
        found = self.cluster.get("events", "-n", self.namespace)["items"]
        found.sort(key=lambda one: int(one["metadata"]["resourceVersion"]))
        return [one["reason"] for one in found]

    def settled(self) -> int:
        """Writes so far, once there was none for a second."""
        seen = -1
        while seen != (seen := len(self.proxy.writes)):
            time.sleep(1.0)
        return seen


def looks(running: Running, least: int) -> bool:
    return running.metric("placer_operator_reconciles_total") >= least


@pytest.fixture
def world(crds: Cluster, tmp_path: Path) -> Iterator[World]:
    stand_in = StandIn()
    namespace = crds.namespace(f"operated-{next(NAMESPACES)}")
    with between(crds) as proxy, serving(stand_in) as address:
        config = kubeconfig(proxy, tmp_path)
        yield World(crds, proxy, stand_in, address, config, tmp_path, namespace)


def test_a_fleet_becomes_ready_in_two_writes(world: World) -> None:
    world.serve("chat")
    with world.operating():
        status = world.become("chat", "Serving")["status"]
        assert world.settled() == 2  # an event and a status
    assert status["width"] == {
        "desired": 2, "allocated": 2, "available": 2, "engineActive": 2, "traffic": 2,
    }  # fmt: skip
    assert status["selector"] == "app=chat"
    kept = world.stand_in.policies[f"{world.namespace}.chat"]
    assert '"topology": "h100"' in kept.policy
    assert kept.reason.startswith(f"MoEFleet {world.namespace}/chat, spec ")
    meta = world.fleet()["metadata"]
    assert not {"finalizers", "annotations"} & meta.keys()


def test_a_plan_is_approved_with_kubectl_and_applied_once(world: World) -> None:
    world.serve("chat")
    with world.operating():
        world.become("chat", "Serving")
        world.stand_in.propose(f"{world.namespace}.chat", moves=[{"gpu": 1, "source": 0}])
        plan = plan_in(world.cluster, world.namespace, "Proposed")
        assert plan["spec"]["moves"]["ranks"] == [
            {"rank": 0, "in": 0, "out": 1}, {"rank": 1, "in": 1, "out": 0},
        ]  # fmt: skip
        approve(world.cluster, plan)
        done = plan_in(world.cluster, world.namespace, "Applied")
        until(lambda: "applied" in world.fleet()["status"]["plans"], "the fleet names it")
    assert [one["state"] for one in done["status"]["acknowledgements"]] == ["Applied"] * 2
    assert world.stand_in.engine == {f"apply {plan['spec']['digest']}": 1}
    assert world.stand_in.plans["plan-1"].approver == "alice"
    assert [one for one in world.events() if one.startswith("Plan")] == [
        "PlanProposed", "PlanApplied",
    ]  # fmt: skip


def test_deleting_a_plan_that_waits_rejects_it(world: World) -> None:
    world.serve("chat")
    with world.operating():
        world.become("chat", "Serving")
        world.stand_in.propose(f"{world.namespace}.chat")
        plan = plan_in(world.cluster, world.namespace, "Proposed")
        until(lambda: "proposed" in world.fleet()["status"]["plans"], "the fleet names it")
        world.cluster.kubectl("delete", "mplan", plan["metadata"]["name"], "-n", world.namespace)
        rejected = placement_pb2.PLAN_STATE_REJECTED
        until(lambda: world.stand_in.plans["plan-1"].state == rejected, "it is rejected")
    assert world.cluster.get("mplan", "-n", world.namespace)["items"] == []


def test_a_fleet_that_is_made_anew_rejects_nothing(world: World) -> None:
    """What the one before it left is collected by the server, at some time."""
    world.serve("chat")
    with world.operating():
        world.become("chat", "Serving")
        world.stand_in.propose(f"{world.namespace}.chat")
        before = plan_in(world.cluster, world.namespace, "Proposed")["metadata"]
        world.cluster.kubectl("delete", "moef", "chat", "-n", world.namespace)
        world.apply("chat")

        def anew() -> bool:
            found = world.cluster.get("mplan", "-n", world.namespace)["items"]
            return [one["metadata"]["name"] for one in found] == [before["name"]] and (
                found[0]["metadata"]["uid"] != before["uid"]
            )

        until(anew, "the plan is an object of the new fleet's")
        world.settled()
    assert world.stand_in.calls["Reject"] == 0


def test_up_and_down_pods_come_first_and_go_last(world: World) -> None:
    world.serve("chat", 2)
    with world.operating():
        world.become("chat", "Serving")
        world.cluster.kubectl("scale", "moef/chat", "--replicas=3", "-n", world.namespace)
        until(lambda: world.replicas() == 3, "capacity is asked for")
        assert world.stand_in.calls["ScaleTo"] == 0  # no engine attaches what is not ready
        world.on(worlds.ready, world.namespace, "chat-2", "chat")
        until(lambda: world.fleet()["status"]["width"]["engineActive"] == 3, "three ranks")
        world.cluster.kubectl("scale", "moef/chat", "--replicas=2", "-n", world.namespace)
        until(lambda: world.replicas() == 2, "the pod is released")
    assert dict(world.stand_in.engine) == {"scale op-1 to 3": 1, "scale op-2 to 2": 1}


def test_an_edit_of_replicas_is_respected_and_told(world: World) -> None:
    world.serve("chat", 2, ("width", {"ranks": 2}))
    with world.operating():
        world.become("chat", "Serving")
        until(lambda: world.fleet()["status"]["width"]["desired"] == 2, "it is seen")
        edit = {"spec": {"replicas": 5}}
        world.on(lambda api: api.patch(STATEFUL_SETS, world.namespace, "chat", edit))
        until(lambda: world.fleet()["status"]["width"]["allocated"] == 5, "it is told")
        world.settled()
        assert world.replicas() == 5


def test_the_second_fleet_of_a_workload_is_told_so_and_takes_over_when_the_first_goes(
    world: World,
) -> None:
    world.serve("chat")
    with world.operating():
        world.become("chat", "Serving")
        time.sleep(1.1)  # a server tells times to the second
        again = worlds.fleet(world.namespace, "chat")
        again["metadata"]["name"] = "late"
        world.on(worlds.apply, FLEETS, world.namespace, again)
        late = world.become("late", "Conflict")
        [told] = [one for one in late["status"]["conditions"] if one["type"] == "Ready"]
        assert told["message"].startswith("MoEFleet chat claimed StatefulSet chat before")
        assert condition(late, "Stalled") == "Conflict"
        world.cluster.kubectl("delete", "moef", "chat", "-n", world.namespace)
        world.become("late", "Pending")
        gone = f"{world.namespace}.chat"
        until(lambda: not world.stand_in.policies[gone].policy, "its policy goes with it")


def test_a_pool_of_another_namespace_is_nobodys_to_take_however_early(world: World) -> None:
    pool, there = f"{world.namespace}.chat", world.cluster.namespace(f"{world.namespace}-evil")
    world.on(worlds.workload, there, "chat", 2)
    world.on(worlds.apply, FLEETS, there, worlds.fleet(there, "chat", ("pool", pool)))
    with world.operating("--namespace", there):
        become(world.cluster, there, "chat", "PolicyRefused")
        assert pool not in world.stand_in.policies
        time.sleep(1.1)  # a server tells times to the second
        world.serve("chat")
        world.become("chat", "Serving")
        world.stand_in.propose(pool)
        plan_in(world.cluster, world.namespace, "Proposed")
        world.settled()
    assert world.cluster.get("mplan", "-n", there)["items"] == []
    assert world.stand_in.policies[pool].reason.startswith(f"MoEFleet {world.namespace}/chat")


def test_pods_that_go_and_a_model_that_is_another(world: World) -> None:
    world.serve("chat")
    with world.operating():
        world.become("chat", "Serving")
        world.apply("chat", ("model", "another"))
        world.become("chat", "PodsOfAnotherModel")
        world.cluster.kubectl("delete", "pod", "--all", "-n", world.namespace)
        world.become("chat", "NoPods")


def test_a_plan_of_another_ledger_is_foreign_and_its_approval_is_not_passed_on(
    world: World,
) -> None:
    world.serve("chat")
    with world.operating():
        world.become("chat", "Serving")
        world.stand_in.propose(f"{world.namespace}.chat")
        plan = plan_in(world.cluster, world.namespace, "Proposed")
        forged = {**plan, "metadata": {"name": "forged", "namespace": world.namespace}}
        forged["spec"] = {**plan["spec"], "ledgerId": "another"}
        world.cluster.kubectl("create", "-f", "-", stdin=forged)
        approve(world.cluster, plan_in(world.cluster, world.namespace, "Foreign"))
        world.become("chat", "ForeignPlan", "Stalled")
    assert world.stand_in.calls["Approve"] == 0


def test_a_policy_that_the_controller_refuses_is_told(world: World) -> None:
    world.stand_in.refuses = lambda method, request: (
        "horizon_s: too long" if method == "PutPolicy" else ""
    )
    world.serve("chat")
    with world.operating():
        found = world.become("chat", "PolicyRefused")
        assert found["status"]["conditions"][0]["message"] == "horizon_s: too long"
        world.settled()
        assert len(world.proxy.writes) == 2


def test_restarts_and_idleness_write_nothing(world: World) -> None:
    for name in ("one", "two", "three"):
        world.serve(name)
    with world.operating():
        for name in ("one", "two", "three"):
            world.become(name, "Serving")
        written = world.settled()
        time.sleep(60)
        assert len(world.proxy.writes) == written
    for _ in range(3):
        with world.operating() as running:
            until(partial(looks, running, 3), "it has looked")
            running.kill()
    assert len(world.proxy.writes) == written


@pytest.mark.parametrize("fault", FAULTS)
def test_a_change_is_seen_whatever_the_server_and_the_network_do(world: World, fault: str) -> None:
    world.serve("chat")
    with world.operating():
        world.become("chat", "Serving")
        with FAULTS[fault](world.proxy):
            world.apply("chat", ("model", "another"))
            world.become("chat", "PodsOfAnotherModel")


def test_while_the_controller_is_away_objects_say_so_and_then_all_goes_on(world: World) -> None:
    """The port is another controller's for a while: nobody's."""
    world.serve("chat")
    port = int(world.address.rpartition(":")[2])
    with world.operating():
        before = world.become("chat", "Serving")["status"]
        world.stand_in.away()
        away = world.become("chat", "ControllerAway")["status"]
        assert {**away, "conditions": 0} == {**before, "conditions": 0}
        with serving(world.stand_in, port):
            world.become("chat", "Serving")


def test_of_two_operators_one_acts_and_the_other_takes_over(world: World) -> None:
    world.serve("chat")
    with world.operating(name="a") as first, world.operating(name="b") as second:
        world.become("chat", "Serving")
        until(lambda: first.is_active != second.is_active, "one is active")
        active, other = (first, second) if first.is_active else (second, first)
        active.process.send_signal(signal.SIGSTOP)
        until(lambda: other.is_active, "the other is active", 20)
        world.apply("chat", ("model", "another"))
        world.become("chat", "PodsOfAnotherModel")
        written = world.settled()
        active.process.send_signal(signal.SIGCONT)
        assert active.process.wait(20) == 2  # it knows that it may not be the one any more
        assert world.settled() == written


def test_fleets_and_their_kind_go_at_once_without_an_operator(world: World) -> None:
    world.serve("chat")
    with world.operating():
        world.become("chat", "Serving")
    world.cluster.kubectl("delete", "moef", "chat", "-n", world.namespace, "--timeout=5s")


def test_a_day_that_no_month_has_is_told_and_harms_nobody_else(world: World) -> None:
    world.serve("chat", 2, ("budgets", [{"schedule": "0 0 31 2 *", "duration": "1h"}]))
    world.serve("fine")
    with world.operating():
        world.become("fine", "Serving")
        found = world.become("chat", "PolicyRefused")
        assert "budgets: schedule '0 0 31 2 *'" in found["status"]["conditions"][0]["message"]


def test_objects_of_an_earlier_schema(world: World) -> None:
    """Written when there were no defaults and no rules: one that says the least, and nonsense."""
    crd = world.cluster.get("crd", "moefleets.placer.dev")
    open_schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    earlier = {**crd, "spec": {**crd["spec"], "versions": [
        {**crd["spec"]["versions"][0], "schema": {"openAPIV3Schema": open_schema},
         "additionalPrinterColumns": []},
    ]}}  # fmt: skip
    world.cluster.kubectl("replace", "-f", "-", stdin=earlier)
    try:
        world.serve("chat")
        nonsense = {"metadata": {"name": "nonsense"}, "spec": {"workload": "chat", "model": 7}}
        world.on(worlds.apply, FLEETS, world.namespace, nonsense)
        late = worlds.fleet(world.namespace, "chat")
        late["metadata"]["name"] = "late"
        world.on(worlds.apply, FLEETS, world.namespace, late)
        said = {"engines": "two", "operation": [1], "conditions": [{"type": "Ready"}]}
        world.on(lambda api: api.patch(
            FLEETS, world.namespace, "late", {"status": said}, of="status"
        ))  # fmt: skip
    finally:
        now = world.cluster.get("crd", "moefleets.placer.dev")["metadata"]["resourceVersion"]
        restored = {**crd, "metadata": {**crd["metadata"], "resourceVersion": now}}
        world.cluster.kubectl("replace", "-f", "-", stdin=restored)
    with world.operating() as running:
        world.become("chat", "Serving")
        world.become("late", "Conflict")  # whose status is all said anew
        until(lambda: running.metric("placer_operator_reconciles_total") > 2, "it looks at all")
        world.cluster.kubectl("delete", "moef", "nonsense", "-n", world.namespace)
