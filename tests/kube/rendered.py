"""What a chart rendered, looked up."""

from collections.abc import Iterator
from typing import Any

Objects = list[Any]
POD_KINDS = ("StatefulSet", "Deployment", "Job")


def one(objects: Objects, kind: str, name: str) -> Any:
    found = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def names(objects: Objects, kind: str) -> set[str]:
    return {each["metadata"]["name"] for each in objects if each["kind"] == kind}


def pods(objects: Objects) -> Iterator[tuple[str, Any]]:
    """Name and pod spec of all that runs."""
    for each in objects:
        if each["kind"] in POD_KINDS:
            yield each["metadata"]["name"], each["spec"]["template"]["spec"]


def pod(objects: Objects, name: str) -> Any:
    return dict(pods(objects))[name]


def container(objects: Objects, name: str) -> Any:
    (only,) = pod(objects, name)["containers"]
    return only


def environment(objects: Objects, name: str) -> dict[str, Any]:
    return {each["name"]: each for each in container(objects, name)["env"]}


def volume(objects: Objects, name: str, which: str) -> Any:
    return {each["name"]: each for each in pod(objects, name)["volumes"]}[which]


def option(objects: Objects, name: str, which: str) -> list[str]:
    """All values of an option of its command."""
    given = container(objects, name)["args"]
    return [text.partition("=")[2] for text in given if text.split("=")[0] == which]
