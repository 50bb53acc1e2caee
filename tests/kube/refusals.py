"""Objects that the server refuses: what is changed, the field that it names, and the remedy."""

from typing import Any

from tests.kube.objects import GONE

REFERENCE = "workload.reference"
LWS = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "x"}
RAY = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "name": "x"}


def budget(**keys: Any) -> list[tuple[str, Any]]:
    return [("budgets", [keys])]


def selector(**keys: Any) -> list[tuple[str, Any]]:
    return [("workload", {"selector": keys})]


def expression(**keys: Any) -> list[tuple[str, Any]]:
    return selector(matchExpressions=[keys])


FLEETS: list[tuple[list[tuple[str, Any]], str, str]] = [
    ([("workload", GONE)], "spec.workload", "Required value"),
    ([("workload", {})], "spec.workload", "give exactly one of reference and selector"),
    ([("workload.selector", {"matchLabels": {"a": "b"}})], "spec.workload", "exactly one of"),
    ([(f"{REFERENCE}.kind", "DaemonSet")], "spec.workload.reference.kind", '"RayCluster"'),
    ([(f"{REFERENCE}.kind", GONE)], "spec.workload.reference.kind", "Required value"),
    ([(f"{REFERENCE}.name", GONE)], "spec.workload.reference.name", "Required value"),
    ([(f"{REFERENCE}.name", "")], "spec.workload.reference.name", "as kubectl get shows it"),
    ([(f"{REFERENCE}.name", "Chat")], "spec.workload.reference.name", "lower-case letters"),
    ([(f"{REFERENCE}.name", "a/b")], "spec.workload.reference.name", "lower-case letters"),
    ([(f"{REFERENCE}.apiVersion", GONE)], "reference.apiVersion", "Required value"),
    ([(f"{REFERENCE}.apiVersion", "v1")], "reference.apiVersion", "is apps/v1: write that"),
    ([(REFERENCE, LWS | {"apiVersion": "apps/v1"})], "reference.apiVersion", "x-k8s.io/v1: write"),
    ([(REFERENCE, RAY | {"apiVersion": "ray.io/v1alpha1", "workerGroup": "g"})],
     "reference.apiVersion", "is ray.io/v1: write that"),
    ([(REFERENCE, RAY)], "reference.workerGroup", "a RayCluster needs the workerGroup"),
    ([(REFERENCE, RAY | {"workerGroup": ""})], "reference.workerGroup", "write the groupName"),
    ([(f"{REFERENCE}.workerGroup", "g")], "reference.workerGroup", "leave it out"),
    (selector(), "spec.workload.selector", "give matchLabels or matchExpressions"),
    (selector(matchLabels={}), "spec.workload.selector", "give matchLabels or matchExpressions"),
    (expression(key="a", operator="In"), "matchExpressions[0].values", "In and NotIn need values"),
    (expression(key="a", operator="Exists", values=["b"]), "[0].values", "remove values"),
    (expression(key="a", operator="Like"), "matchExpressions[0].operator", '"DoesNotExist"'),
    (expression(operator="Exists"), "matchExpressions[0].key", "Required value"),
    ([("pool", "")], "spec.pool", "pool is a name: letters"),
    ([("pool", "a b")], "spec.pool", "pool is a name: letters"),
    ([("pool", "x" * 201)], "spec.pool", "more than 200"),
    ([("pool", "chat")], "spec.pool", "write NAMESPACE.NAME, in PLACER_POOL too, or leave it out"),
    ([("model", GONE)], "spec.model", "Required value"),
    ([("model", "")], "spec.model", "such as deepseek-ai/DeepSeek-V3"),
    ([("topology", {})], "spec.topology", "exactly one of preset, such as h100"),
    ([("topology", {"preset": "h100", "fromNodeLabels": True})], "spec.topology", "exactly one"),
    ([("topology", {"fromNodeLabels": False})], "spec.topology", "fromNodeLabels: true"),
    ([("topology", {"preset": "h1000"})], "spec.topology.preset", '"gb200-nvl72"'),
    ([("topology", {"fromNodeLabels": True, "nodes": 2})], "spec.topology.nodes", "leave it out"),
    ([("topology", {"preset": "h100", "nodes": 0})], "spec.topology.nodes", "write 1 to 4096"),
    ([("redundancy", -1)], "spec.redundancy", "write 0 to 4096"),
    ([("redundancy", "many")], "spec.redundancy", "must be of type integer"),
    ([("mode", "auto")], "spec.mode", '"advisory", "automatic"'),
    ([("objective.optimizer", "best")], "spec.objective.optimizer", '"joint"'),
    ([("objective.dispatch", "deepep")], "spec.objective.dispatch", '"dedup"'),
    ([("objective.phase", "both")], "spec.objective.phase", '"mixed"'),
    ([("objective.horizonSeconds", -1)], "spec.objective.horizonSeconds", "such as 600"),
    ([("objective.maxMoved", 10)], "spec.objective.maxMoved", "a number from 0 to 1"),
    ([("objective.surviveNode", "yes")], "spec.objective.surviveNode", "must be of type boolean"),
    ([("guard", 1.5)], "spec.guard", "a number from 0 to 1, such as 0.2"),
    ([("overlap", -0.1)], "spec.overlap", "a number from 0 to 1, such as 0.5"),
    (budget(), "spec.budgets[0]", "this budget limits nothing: give"),
    (budget(reasons=["Rebalance"]), "spec.budgets[0]", "this budget limits nothing: give"),
    (budget(frozen=True, reasons=["Move"]), "spec.budgets[0].reasons[0]", '"Rebalance"'),
    (budget(frozen=True, reasons=[]), "spec.budgets[0].reasons", "leave it out for all of them"),
    (budget(schedule="0 22 * * *"), "spec.budgets[0].schedule", "go together: give both"),
    (budget(duration="8h", frozen=True), "spec.budgets[0].schedule", "go together: give both"),
    (budget(schedule="22:00", duration="8h"), "spec.budgets[0].schedule", "write five fields"),
    (budget(schedule="0 24 * * *", duration="8h"), "budgets[0].schedule", "hours 0 to 23"),
    (budget(schedule="60 1 * * *", duration="8h"), "budgets[0].schedule", "minutes are 0 to 59"),
    (budget(schedule="0 1 32 * *", duration="8h"), "budgets[0].schedule", "days 1 to 31"),
    (budget(schedule="0 1 * 13 *", duration="8h"), "budgets[0].schedule", "months 1 to 12"),
    (budget(schedule="0 1 * * 8", duration="8h"), "budgets[0].schedule", "weekdays 0 to 7"),
    (budget(schedule="0 1 * * DAY", duration="8h"), "budgets[0].schedule", "write five fields"),
    (budget(schedule="0 1 * * *", duration="8"), "budgets[0].duration", "such as 8h, 90m or 1h30m"),
    (budget(schedule="0 1 * * *", duration="0h"), "budgets[0].duration", "such as 8h"),
    (budget(bytesPerMinute=0), "spec.budgets[0].bytesPerMinute", "write frozen: true"),
    (budget(bytesPerMinute="-1G"), "spec.budgets[0].bytesPerMinute", "such as 10G or 512Mi"),
    (budget(bytesPerMinute="500m"), "spec.budgets[0].bytesPerMinute", "such as 10G or 512Mi"),
    (budget(bytesPerMinute="1e999999"), "spec.budgets[0].bytesPerMinute", "such as 10G or 512Mi"),
    (budget(bytesPerMinute="10 GB"), "spec.budgets[0].bytesPerMinute", "such as 10G or 512Mi"),
    (budget(bytesPerMinute="1G", frozen=True), "budgets[0].bytesPerMinute", "or frozen"),
    ([("width", {"ranks": 0})], "spec.width.ranks", "an engine has 1 to 4096 ranks"),
    ([("width", {"minRanks": 8, "maxRanks": 4})], "spec.width.minRanks", "smaller number"),
    ([("width", {"ranks": 2, "minRanks": 4})], "spec.width.ranks", "or lower minRanks"),
    ([("width", {"ranks": 8, "maxRanks": 4})], "spec.width.ranks", "or raise maxRanks"),
    ([("width", {"maxRanks": 0})], "spec.width.maxRanks", "write such a number as maxRanks"),
    ([("slo", {})], "spec.slo", "give ttftMilliseconds, tpotMilliseconds or both"),
    ([("slo", {"attainment": 0.9})], "spec.slo", "give ttftMilliseconds"),
    ([("slo", {"ttftMilliseconds": 0})], "spec.slo.ttftMilliseconds", "such as 2000"),
    ([("slo", {"tpotMilliseconds": -5})], "spec.slo.tpotMilliseconds", "such as 100"),
    ([("slo", {"ttftMilliseconds": 1, "attainment": 0})], "spec.slo.attainment", "such as 0.9"),
    ([("preScheduling", {"controlPercent": 101})], "preScheduling.controlPercent", "0 to 100"),
    ([("preScheduling", {"enabled": True})], "preScheduling.enabled", "dedup or coherent"),
    ([("widht", {"ranks": 4})], "spec.widht", "unknown field"),
]  # fmt: skip

PLANS: list[tuple[list[tuple[str, Any]], str, str]] = [
    ([("fleet", GONE)], "spec.fleet", "Required value"),
    ([("digest", "sha256:12")], "spec.digest", "sha256: and 64 hexadecimal digits"),
    ([("epoch", -1)], "spec.epoch", "milliseconds since 1970"),
    ([("approval", {"approved": True, "by": "admin"})], "approval.digest", "value of spec.digest"),
    ([("approval", {"digest": "x"})], "spec.approval.approved", "Required value"),
]
