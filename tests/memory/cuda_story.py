"""Two processes share memory of a CUDA device, by descriptors; what they saw is printed as JSON."""

import json
import os
import socket
import subprocess
import sys
from typing import Any

import numpy as np

from placer.memory.cuda import CudaDevice
from placer.memory.device import DeviceError, Run
from placer.memory.messages import receive_with, send
from placer.memory.ranges import Range

PAGES = 3


def why(ask: Any, *arguments: Any) -> str:
    try:
        ask(*arguments)
    except DeviceError as error:
        return str(error)
    return ""


def other(descriptor: int) -> None:
    """Writes 10, 11 and 12 into the pages that it is sent."""
    device = CudaDevice(0)
    with socket.socket(fileno=descriptor) as parent:
        _, pages = receive_with(parent)
        window = Range(device, [Run(page, 0, device.granularity) for page in pages])
        window.array().reshape(PAGES, -1)[:] = np.arange(10, 10 + PAGES)[:, None]
        window.close()
        for page in pages:
            os.close(page)
        send(parent, device._mapped == {})


def story() -> dict[str, Any]:
    device = CudaDevice(0)
    size = device.granularity
    pages = [device.create(size) for _ in range(PAGES)]
    first = Range(device, [Run(page, 0, size) for page in pages])
    begun = first.array().max()
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.memory.cuda_story", str(theirs.fileno())]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()]):
        theirs.close()
        send(ours, "pages", pages)
        left_nothing, _ = receive_with(ours)
    second = Range(device, [Run(page, 0, size) for page in reversed(pages)])
    rows = [one.array().reshape(PAGES, size) for one in (first, second)]
    seen = [[int(page.min()) for page in row] for row in rows]
    first.array()[0] = 99  # one memory behind both ranges
    shared = int(second.array()[(PAGES - 1) * size])
    at = second.address
    device.map(at, Run(pages[0], 0, size))  # in place of the last page
    replaced = int(second.array()[0])
    refused = {
        "part": why(device.map, at, Run(pages[0], size, size)),
        "half": why(device.unmap, at, size // 2),
        "odd": why(device.create, size + 1),
        "nobody": why(CudaDevice, 7),
    }
    for page in pages:
        os.close(page)
    kept = int(first.array()[size])  # mappings outlive descriptors
    for one in (first, second):
        one.close()
    return {
        "granularity": size,
        "begun": int(begun),
        "seen": seen,
        "shared": shared,
        "replaced": replaced,
        "refused": refused,
        "kept": kept,
        "left nothing": left_nothing and device._mapped == {},
        "open": [name for name in os.listdir("/proc/self/fd") if "stand-in" in _link(name)],
    }


def _link(name: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return ""


if __name__ == "__main__":
    if len(sys.argv) > 1:
        other(int(sys.argv[1]))
    else:
        print(json.dumps(story()))
