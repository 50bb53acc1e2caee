"""Side-by-side timing, and the cost of whole processes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

from rich.console import Console

console = Console(width=130, highlight=False)


def medians_ms(functions: Mapping[str, Callable[[], Any]], rounds: int = 15) -> dict[str, float]:
    """Median milliseconds of each, called in turn so that a slow moment hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - begun) * 1e3)
    return {name: median(values) for name, values in times.items()}


def process(*args: str) -> tuple[float, float]:
    """(wall seconds, peak MB) of `placer ARGS`; raises if it fails."""
    begun = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "placer.cli.main", *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"placer {' '.join(args)} ended with {child.returncode}")
    return time.perf_counter() - begun, usage.ru_maxrss / 1024
