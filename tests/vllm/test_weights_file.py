"""Tensors that are written into memory and found there again."""

import os

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: make test-vllm installs it")

import torch

from placer.agent.vllm.weights.checkpoint import File
from placer.agent.vllm.weights.weights_file import (
    HEADER_ROOM,
    Entry,
    Header,
    Named,
    Writer,
    read_header,
)
from placer.memory.memfd import Memfd

FILES = {"model.safetensors": File(1, 2, 3, 4, 5, "6")}


def test_what_is_written_is_found_with_where_it_is_from() -> None:
    descriptor = Memfd().create(0)
    writer = Writer(descriptor, Header({"dtype": "bfloat16"}, "a-model", FILES))
    tied = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    turned = torch.arange(4.0).view(2, 2).t()
    writer.add([Named("embedding", tied, True), Named("head", tied, True)])
    # What has a name is not written again, as what a layer was packed from.
    writer.add([Named("head", torch.zeros(0), True), Named("turned", turned, False)])
    writer.add([Named("scale", torch.tensor(2.0), False), Named("none", torch.zeros(0), True)])
    writer.close()

    found = read_header(descriptor)
    assert (found.settings, found.model, found.files) == ({"dtype": "bfloat16"}, "a-model", FILES)
    assert found.entries == [
        Entry("embedding", True, "bfloat16", (2, 3), HEADER_ROOM, 12),
        Entry("head", True, "bfloat16", (2, 3), HEADER_ROOM, 12),
        Entry("turned", False, "float32", (2, 2), HEADER_ROOM + 64, 16),
        Entry("scale", False, "float32", (), HEADER_ROOM + 128, 4),
        Entry("none", True, "float32", (0,), HEADER_ROOM + 192, 0),
    ]
    written = os.pread(descriptor, 16, HEADER_ROOM + 64)
    assert torch.frombuffer(bytearray(written), dtype=torch.float32).tolist() == [0, 2, 1, 3]
    # Room for the header takes no memory but what is used of it.
    assert 512 * os.fstat(descriptor).st_blocks < 2**20
    os.close(descriptor)
