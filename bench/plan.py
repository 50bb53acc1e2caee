"""`placer plan`, end to end, on the DeepSeek-V2-Lite traces."""

import os
from pathlib import Path
from statistics import median

from rich.table import Table

from bench.timing import console, process

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("PLACER_TEST_DATA", ROOT.parent / "shared" / "data"))
ROUNDS = 5


def run() -> None:
    traces = [str(path) for path in sorted((DATA / "deepseek-v2-lite-routing").glob("*.npz"))]
    if not traces:
        console.print(f"plan: left out, no DeepSeek-V2-Lite traces in {DATA}")
        return
    table = Table(title="placer plan on both DeepSeek-V2-Lite traces, 8 GPUs, whole process")
    for name in ("options", "wall, s", "peak, MB"):
        table.add_column(name, justify="right")
    for options in ("", "--dispatch dedup --redundant 16 --holdout 0.5"):
        runs = [process("plan", *traces, "--gpus", "8", *options.split()) for _ in range(ROUNDS)]
        wall, peak = (median(values) for values in zip(*runs, strict=True))
        table.add_row(options or "(none)", f"{wall:.2f}", f"{peak:.0f}")
    console.print(table)
