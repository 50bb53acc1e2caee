"""What the agent costs a serving engine: the same requests with and without it, in turn."""

from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rich.table import Table

from bench.timing import console
from tests.vllm.engines import Engine
from tests.vllm.story import real_prompts

PAIRS, TOKENS = 60, 40


def run() -> None:
    if find_spec("vllm") is None:
        console.print("agent: left out, vLLM is not installed (make test-vllm)")
        return
    with TemporaryDirectory() as name:
        place = Path(name)
        for kind in ("with", "without"):
            (place / kind).mkdir()
        agents = str(place / "agents")
        with Engine(place / "with", agents) as agent, Engine(place / "without", None) as plain:
            console.print(_table(agent, plain))


def _table(agent: Engine, plain: Engine) -> Table:
    prompts = real_prompts()
    size = len(prompts) * TOKENS
    for engine in (agent, plain):
        engine.generate(prompts, TOKENS)
    ratios, rates = [], []
    for pair in range(PAIRS):
        # Whoever goes second may profit; so they take turns.
        order = (agent, plain) if pair % 2 else (plain, agent)
        took = {engine: engine.generate(prompts, TOKENS).seconds for engine in order}
        ratios.append(took[plain] / took[agent])
        rates.append(size / took[agent])
    table = Table(
        title=f"vLLM's throughput with the agent recording over without, {PAIRS} pairs of "
        f"{len(prompts)} streams x {TOKENS} tokens, tiny_moe on one CPU worker",
        title_justify="left",
    )
    for column in ("median", "lowest", "highest", "tokens/s with the agent"):
        table.add_column(column, justify="right")
    low, high = min(ratios), max(ratios)
    table.add_row(f"{median(ratios):.3f}", f"{low:.3f}", f"{high:.3f}", f"{median(rates):.0f}")
    return table
