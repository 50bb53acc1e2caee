"""Real requests: what is known of each before it runs, and what is routed once it does."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from placer import model, topology
from placer.arrays import BoolArray, IntArray
from placer.files.routing import read_trace
from placer.model import ModelShape
from placer.objective import STEP_TOKENS_PER_GPU, Objective
from placer.problem import Problem
from placer.profile import of_trace
from placer.tables import TokenTable, token_identity, token_table
from placer.tables.answers import Answered
from placer.trace import Trace, concatenate

SPLITS = 5
TINY = Path(__file__).parents[2] / "examples" / "tiny_moe" / "traces"
SHAPE = ModelShape("tiny_moe", 6, 16, 2, 128, 64)


@dataclass(frozen=True, eq=False)
class Requests:
    """Sequences with the prompts that they answer.

    served: tokens that are routed, sequence after sequence
    known:  [tokens] of all prompts, laid end to end; prompts: [sequences] their lengths
    """

    served: Trace
    known: IntArray
    prompts: IntArray

    def select(self, chosen: BoolArray) -> "Requests":
        kept = np.repeat(chosen, self.prompts)
        return Requests(self.served.select(chosen), self.known[kept], self.prompts[chosen])

    def prompt(self, at: int) -> IntArray:
        end = int(self.prompts[: at + 1].sum())
        return self.known[end - int(self.prompts[at]) : end]


@dataclass(frozen=True, eq=False)
class World:
    """One model's requests.

    decodes: what is served are other tokens than those known
    domains: [domains] sequences of each, one after another
    apart:   what is fitted on is of one domain, and what is judged of the others
    """

    name: str
    shape: ModelShape
    requests: Requests
    decodes: bool
    domains: tuple[int, ...] = ()
    apart: bool = False

    @property
    def splits(self) -> int:
        return len(self.domains) if self.apart else SPLITS

    def elsewhere(self) -> "World":
        return replace(self, name=f"{self.name}, other domains", apart=True)

    def halves(self, seed: int) -> tuple[Requests, Requests]:
        """To fit on, and to score on."""
        count = self.requests.served.sequences
        fit = np.zeros(count, dtype=np.bool_)
        if self.apart:
            fit[:] = np.repeat(np.arange(len(self.domains)), self.domains) == seed
        else:
            fit[np.random.default_rng(seed).permutation(count)[: count // 2]] = True
        return self.requests.select(fit), self.requests.select(~fit)

    def problem(
        self, fit: Trace, gpus: int, redundant: int = 0, clustered: bool = False
    ) -> Problem:
        phase = "decode" if self.decodes else "prefill"
        return Problem(
            model=self.shape,
            topology=topology.preset("h100").resized(gpus),
            profile=of_trace(fit, clustered),
            slots=self.shape.experts + redundant,
            objective=Objective("dedup", STEP_TOKENS_PER_GPU[phase], memory_share=1.0),
            trace=fit,
        )


def worlds(data: Path | None) -> Iterator[World]:
    """The example model's, and those whose recordings are in the folder ``data``."""
    if paths := sorted(TINY.glob("*.npz")):
        traces = [read_trace(path, SHAPE) for path in paths]
        tiny = _prefilled(concatenate(traces))
        yield World("example model", SHAPE, tiny, False, _sequences(traces))
    if data is None:
        return
    lite = model.preset("deepseek-v2-lite")
    if paths := sorted((data / "deepseek-v2-lite-routing").glob("*.npz")):
        traces = [read_trace(path, lite) for path in paths]
        both = concatenate(traces)
        _, numbered = np.unique(token_identity(both), return_inverse=True)
        both = replace(both, token_ids=numbered.astype(np.int64))
        name, some = "DSV2-Lite (upper bound: keyed on layer 0)", _prefilled(both)
        yield World(name, lite, some, False, _sequences(traces))
    oss, folder = model.preset("gpt-oss-20b"), data / "gpt-oss-20b-decode"
    names = [name for name in ("stem", "humanities") if (folder / f"{name}.prompts.npz").exists()]
    if names:
        traces = [read_trace(folder / f"{name}.npz", oss) for name in names]
        prompts = [np.load(folder / f"{name}.prompts.npz") for name in names]
        known, lens = (
            np.concatenate([one[name] for one in prompts]).astype(np.int64)
            for name in ("token_ids", "prompt_lens")
        )
        some = Requests(concatenate(traces), known, lens)
        yield World("gpt-oss decode, from prompts", oss, some, True, _sequences(traces))


def _sequences(traces: Iterable[Trace]) -> tuple[int, ...]:
    return tuple(trace.sequences for trace in traces)


def _prefilled(trace: Trace) -> Requests:
    assert trace.token_ids is not None
    return Requests(trace, trace.token_ids.astype(np.int64), trace.seq_lens.astype(np.int64))


def table_of(fit: Requests) -> TokenTable:
    return token_table(fit.served)


def answered(fit: Requests) -> Iterator[Answered]:
    """What was known of each, and all that was routed."""
    tokens, known, routed = token_identity(fit.served), 0, 0
    for prompt, length in zip(fit.prompts.tolist(), fit.served.seq_lens.tolist(), strict=True):
        own = slice(routed, routed + length)
        asked = fit.known[known : known + prompt]
        yield Answered(asked, tokens[own], fit.served.expert_ids[own], 0)
        known, routed = known + prompt, routed + length
