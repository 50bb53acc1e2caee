"""The example manifests: valid, one story in each, and the lines of placer's can be told apart."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from placer.model import preset
from tests.kube.cluster import ROOT, Cluster
from tests.kube.rendered import Objects, names, one

MANIFESTS = sorted((ROOT / "deploy" / "manifests").glob("*.yaml"))
MARKED = re.compile(r"^ *# placer: these lines\n(.*?)^ *# placer: end\n", re.MULTILINE | re.DOTALL)
MODELS = {"openai/gpt-oss-120b": "gpt-oss-120b", "Qwen/Qwen3-30B-A3B": "qwen3-30b-a3b"}
MODELS |= {"deepseek-ai/DeepSeek-V3": "deepseek-v3"}
Template = Callable[..., Objects]


def documents(text: str) -> Objects:
    return list(yaml.safe_load_all(text))


def templates(document: Any) -> Iterator[Any]:
    """Those of pods, wherever they stand."""
    for key, value in document.items() if isinstance(document, dict) else ():
        if key.endswith("emplate") and "containers" in value.get("spec", {}):
            yield value
        yield from templates(value)
    for value in document if isinstance(document, list) else ():
        yield from templates(value)


def serving(path: Path) -> Any:
    """The pod spec whose processes have agents."""
    found = [
        template["spec"]
        for document in documents(path.read_text())
        for template in templates(document)
        if "initContainers" in template["spec"]
    ]
    assert len(found) == 1
    return found[0]


def environment(path: Path) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in serving(path)["containers"][0]["env"]}


def fleet(path: Path) -> Any:
    return next(each for each in documents(path.read_text()) if each["kind"] == "MoEFleet")


def option(path: Path, name: str) -> int:
    found = re.search(rf'{name}"?[ :]+(\d+)', path.read_text())
    assert found is not None
    return int(found[1])


def check(text: str) -> None:
    for document in documents(text):
        if document["apiVersion"] in ("apps/v1", "batch/v1"):
            kubernetes_validate.validate(document, "1.37", strict=True)
        for template in templates(document):
            whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}}
            kubernetes_validate.validate(whole | {"template": template}, "1.37", strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
class TestManifest:
    def test_it_is_valid(self, path: Path) -> None:
        check(path.read_text())

    def test_the_server_takes_its_fleet(self, crds: Cluster, path: Path) -> None:
        crds.kubectl("create", "--dry-run=server", "-f", "-", stdin=fleet(path))

    def test_without_placers_lines_it_is_what_it_was(self, path: Path) -> None:
        text = path.read_text()
        before = "---\n".join(
            each for each in MARKED.sub("", text).split("---\n") if "kind: MoEFleet" not in each
        )
        code = "\n".join(line for line in before.splitlines() if not line.startswith("#"))
        assert "placer" not in code.lower()
        check(code)

    def test_what_it_refers_to_is_in_the_chart(self, template: Template, path: Path) -> None:
        chart = template({}, namespace="default")
        host, _, port = environment(path)["PLACER_AGENT"].partition(":")
        service = one(chart, "Service", host)
        assert int(port) in {each["port"] for each in service["spec"]["ports"]}
        certificate = one(chart, "Certificate", "placer-tls")["spec"]
        assert host in certificate["dnsNames"]
        volumes = {each["name"]: each for each in serving(path)["volumes"]}
        token, authority = volumes["placer-access"]["projected"]["sources"]
        assert token["secret"]["name"] in names(chart, "Secret")
        keys = one(chart, "Secret", token["secret"]["name"])["data"]
        assert {each["key"] for each in token["secret"]["items"]} <= set(keys)
        assert authority["secret"]["name"] == certificate["secretName"]

    def test_the_fleet_is_its_workloads(self, path: Path) -> None:
        spec, name = fleet(path)["spec"], fleet(path)["metadata"]["name"]
        reference = spec["workload"]["reference"]
        (workload,) = (
            each for each in documents(path.read_text())
            if (each["apiVersion"], each["kind"]) == (reference["apiVersion"], reference["kind"])
        )  # fmt: skip
        assert workload["metadata"]["name"] == reference["name"]
        groups = [each["groupName"] for each in workload["spec"].get("workerGroupSpecs", [])]
        assert groups == [reference.get("workerGroup")] * len(groups)
        assert environment(path)["PLACER_POOL"] == f"$(POD_NAMESPACE).{name}"
        assert f"vllm serve {spec['model']} " in path.read_text()
        assert spec["redundancy"] == option(path, "num_redundant_experts")
        is_deduplicating = "deepep" in path.read_text()
        assert (spec.get("objective", {}).get("dispatch") == "dedup") == is_deduplicating

    def test_experts_and_ranks_are_as_many_as_slots_and_gpus(self, path: Path) -> None:
        ranks = option(path, "--data-parallel-size")
        spec = fleet(path)["spec"]
        slots = preset(MODELS[spec["model"]]).experts + spec["redundancy"]
        assert slots % ranks == 0
        gpus = int(serving(path)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
        pods = {32: 4, 4: 1}[ranks]
        assert gpus * pods == ranks
        assert spec.get("width", {}).get("ranks", ranks) == ranks

    def test_its_variables_are_those_that_agents_read(self, path: Path) -> None:
        code = "".join(each.read_text() for each in (ROOT / "placer").rglob("*.py"))
        ours = {name for name in environment(path) if name.startswith("PLACER_")}
        assert ours
        assert {name for name in ours if not re.search(rf"\b{name}\b", code)} == set()
        assert environment(path)["PYTHONPATH"] == "/placer"
        (brings,) = serving(path)["initContainers"]
        assert brings["volumeMounts"] == [{"name": "placer", "mountPath": "/placer"}]


def test_there_is_one_of_each_kind_that_a_fleet_may_refer_to() -> None:
    kinds = {fleet(path)["spec"]["workload"]["reference"]["kind"] for path in MANIFESTS}
    assert kinds == {"LeaderWorkerSet", "RayCluster", "StatefulSet", "Deployment"}
