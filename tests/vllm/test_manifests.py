"""vLLM takes the options that the example manifests give it."""

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

MANIFESTS = sorted((Path(__file__).parents[2] / "deploy" / "manifests").glob("*.yaml"))


def served(path: Path) -> list[str]:
    """The words after ``vllm serve``, with 1 for what only the pod knows."""
    found = re.search(r"vllm serve (.*?}')\n", path.read_text(), re.DOTALL)
    assert found is not None
    command = re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", found[1].replace("\\\n", " "))
    return shlex.split(command)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_vllm_knows_every_option(path: Path) -> None:
    model, *options = served(path)
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(options)
    validate_parsed_serve_args(args)
    assert "/" in model
    assert args.enable_expert_parallel
    assert args.enable_eplb
