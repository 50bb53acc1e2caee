"""What is generated from protos/ is up to date, and the protos keep the rules of buf's linter."""

import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
TYPES = ("mypy", "mypy_grpc")  # generators of typed stubs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed here"
)


def protoc(*options: str, root: str = "protos", of: Sequence[Path] = PROTOS) -> None:
    plugins = (f"--plugin={Path(sys.executable).parent / f'protoc-gen-{one}'}" for one in TYPES)
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", root, *plugins, *options]
    names = [str(path.relative_to(ROOT)) for path in of]
    subprocess.run([*command, *names], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Descriptors of the files in protos/, with their comments."""
    path = tmp_path_factory.mktemp("protos") / "set"
    protoc(f"--descriptor_set_out={path}", "--include_source_info")
    descriptors: Any = importlib.import_module("google.protobuf.descriptor_pb2")
    found: list[Any] = list(descriptors.FileDescriptorSet.FromString(path.read_bytes()).file)
    assert len(found) == len(PROTOS) > 0
    return found


def test_the_committed_code_is_what_protoc_makes_of_the_protos_today(tmp_path: Path) -> None:
    kinds = ("python", "grpc_python", *TYPES)
    protoc(*(f"--{kind}_out={tmp_path}" for kind in kinds))
    made = {path.relative_to(tmp_path): path for path in tmp_path.rglob("*.py*")}
    committed = {path.relative_to(ROOT) for path in (ROOT / "placer" / "v1").glob("*_pb2*.py*")}
    assert set(made) == committed
    for name, path in made.items():
        assert path.read_bytes() == (ROOT / name).read_bytes(), f"{name}: run make proto"


def test_so_is_that_of_the_gateways_messages(tmp_path: Path) -> None:
    picker = ROOT / "controller" / "router" / "picker"
    out = (f"--python_out={tmp_path}", f"--mypy_out={tmp_path}")
    protoc(*out, root=".", of=[picker / "gateway.proto"])
    for path in tmp_path.rglob("*.py*"):
        assert path.read_bytes() == (picker / path.name).read_bytes(), "run make proto"


def test_every_file_is_in_the_folder_of_its_package(files: list[Any]) -> None:
    for file in files:
        assert file.syntax == "proto3"
        assert file.package == "placer.v1"
        assert str(Path(file.name).parent) == "placer/v1"
        assert re.fullmatch(r"[a-z0-9_]+\.proto", Path(file.name).name)


def test_services_end_in_service_and_requests_and_responses_are_named_after_their_rpc(
    files: list[Any],
) -> None:
    services = [service for file in files for service in file.service]
    assert services
    for service in services:
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+Service", service.name)
        for rpc in service.method:
            assert rpc.input_type == f".placer.v1.{rpc.name}Request"
            assert rpc.output_type == f".placer.v1.{rpc.name}Response"


def test_enum_values_carry_the_name_of_their_enum_and_begin_with_unspecified(
    files: list[Any],
) -> None:
    enums = [enum for file in files for enum in file.enum_type]
    assert enums
    for enum in enums:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        values = {value.name: value.number for value in enum.value}
        assert values[f"{prefix}_UNSPECIFIED"] == 0
        assert all(name.startswith(f"{prefix}_") and name.isupper() for name in values)


def test_messages_are_in_camel_case_and_fields_in_snake_case(files: list[Any]) -> None:
    for message in (message for file in files for message in file.message_type):
        assert re.fullmatch(r"([A-Z][a-z0-9]*)+", message.name)
        for field in message.field:
            assert re.fullmatch(r"[a-z][a-z0-9_]*", field.name)


MESSAGE, SERVICE, METHOD = 4, 6, 2  # fields of a file's and of a service's descriptor


def named(file: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What must say what it is for: services, RPCs, and messages that no RPC explains."""
    for at, service in enumerate(file.service):
        yield service.name, (SERVICE, at)
        for number, rpc in enumerate(service.method):
            yield f"{service.name}.{rpc.name}", (SERVICE, at, METHOD, number)
    for at, message in enumerate(file.message_type):
        if not message.name.endswith(("Request", "Response")):
            yield message.name, (MESSAGE, at)


def test_services_rpcs_and_messages_begin_with_a_comment(files: list[Any]) -> None:
    for file in files:
        comments = {
            tuple(place.path): place.leading_comments for place in file.source_code_info.location
        }
        silent = [name for name, path in named(file) if not comments[path].strip()]
        assert silent == []
