"""What the agent costs a serving engine: the same requests with and without it, in turn.

In one engine, whose hooks are taken out and put back between runs: two engines differ by up to 3%
for as long as they live, with or without an agent.
"""

from importlib.util import find_spec
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from rich.table import Table

from bench.timing import console
from tests.vllm.engines import Engine
from tests.vllm.story import real_prompts

PAIRS, TOKENS = 80, 40


def run() -> None:
    if find_spec("vllm") is None:
        console.print("agent: left out, vLLM is not installed (make test-vllm)")
        return
    with TemporaryDirectory() as name:
        place = Path(name)
        with Engine(place, str(place / "agents")) as engine:
            console.print(_table(engine))


def _table(engine: Engine) -> Table:
    prompts = real_prompts()
    size = len(prompts) * TOKENS

    def seconds(agent: bool) -> float:
        engine.call("placer_switch", agent)
        return engine.generate(prompts, TOKENS).seconds

    for agent in (True, False, True, False):
        seconds(agent)
    ratios, noise, rates = [], [], []
    for pair in range(PAIRS):
        # Whoever goes second may profit; so they take turns.
        order = (True, False) if pair % 2 else (False, True)
        took = {agent: seconds(agent) for agent in order}
        ratios.append(took[False] / took[True])
        noise.append(seconds(False) / seconds(False))
        rates.append(size / took[True])
    table = Table(
        title=f"vLLM's throughput with the agent recording over without, {PAIRS} pairs of "
        f"{len(prompts)} streams x {TOKENS} tokens, tiny_moe on one CPU worker",
        title_justify="left",
    )
    for column in ("", "median", "quartiles", "tokens/s with the agent"):
        table.add_column(column, justify="right")
    for name, found in (("with over without", ratios), ("without over without", noise)):
        low, _, high = quantiles(found, n=4)
        rate = f"{median(rates):.0f}" if found is ratios else ""
        table.add_row(name, f"{median(found):.3f}", f"{low:.3f} to {high:.3f}", rate)
    return table
