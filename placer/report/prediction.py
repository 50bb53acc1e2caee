"""What tables foretell, and what is advised, as tables and as fields of --json."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.table import Table

from placer.prediction.advice import Advice
from placer.prediction.predict import Prediction

LAYERS = 8  # shown one by one; of more, every n-th


def prediction_tables(found: Prediction) -> Iterator[Table]:
    """For people."""
    yield _experts(found)
    yield _layers(found)
    if found.batches:
        yield _batches(found)
    yield _locality(found)


def prediction_json(found: Prediction) -> dict[str, Any]:
    """For scripts."""
    likely, shuffle = found.likely, found.shuffle
    return {
        "tokens": found.tokens,
        "keyed_by": found.keyed_by,
        "upper_bound": found.is_upper_bound,
        "known": found.known,
        "top_k": [
            {"context": order, "recall": one.recall, "by_layer": one.recall_by_layer.tolist()}
            for order, one in enumerate(found.top_k)
        ],
        "likely": {"precision": likely.precision, "recall": likely.recall, "f1": likely.f1},
        "next_layer": found.next_top_k
        and found.next_top_2k
        and {"top_k": found.next_top_k.recall, "top_2k": found.next_top_2k.recall},
        "gpus": found.gpus,
        "lar": {
            "least_loaded": found.least_loaded.tolist(),
            "requests": found.requests.tolist(),
            "tokens_wished": shuffle.wished.tolist(),
            "tokens_aligned": shuffle.aligned.tolist(),
        },
        "imbalance": {
            "tokens_wished": shuffle.wished_imbalance.tolist(),
            "tokens_aligned": shuffle.aligned_imbalance.tolist(),
        },
        "batches": [asdict(one) for one in found.batches],
        "srp": [{"segment": segment, "f1": f1} for segment, f1 in found.srp.items()],
        "sch": [
            {"segment": segment, "size": size, "hit_rate": rate}
            for (segment, size), rate in found.sch.items()
        ],
    }


def _experts(found: Prediction) -> Table:
    table = _table(f"experts foretold of {found.tokens:,} tokens, mean of layers", "from")
    for name in ("precision", "recall", "F1"):
        table.add_column(name, justify="right")
    words = ("nothing (the prior)", "the token", "2 tokens", "3 tokens", "4 tokens")
    for word, one in zip(words, found.top_k, strict=True):
        table.add_row(f"{word}, top-k", _share(one.precision), _share(one.recall), _share(one.f1))
    likely = found.likely
    cells = _share(likely.precision), _share(likely.recall), _share(likely.f1)
    table.add_row("the token, those likelier than not", *cells)
    for word, ahead in (("k", found.next_top_k), ("2k", found.next_top_2k)):
        if ahead is not None:
            cells = _share(ahead.precision), _share(ahead.recall), _share(ahead.f1)
            table.add_row(f"the layer before, top-{word}", *cells)
    return table


def _layers(found: Prediction) -> Table:
    even = 1 / found.gpus
    table = _table(
        f"activations local to their token's GPU (LAR), {found.gpus} GPUs; 1/G is {even:.3f}",
        "layer",
    )
    for name in ("least loaded", "requests", "tokens", "imbalance", "aligned", "imbalance"):
        table.add_column(name, justify="right")
    shuffle = found.shuffle
    columns = [
        found.least_loaded,
        found.requests,
        shuffle.wished,
        shuffle.wished_imbalance,
        shuffle.aligned,
        shuffle.aligned_imbalance,
    ]
    layers = len(found.requests)
    for layer in range(0, layers, -(-layers // LAYERS)):
        table.add_row(str(layer), *(f"{column[layer]:.3f}" for column in columns))
    means = [float(column.mean()) for column in columns]
    table.add_section()
    table.add_row("mean", *(f"{mean:.3f}" for mean in means))
    times = [f"{mean / even:.2f}x" for mean in means]
    table.add_row("of 1/G", *times[:3], "", times[4], "")
    return table


def _batches(found: Prediction) -> Table:
    table = _table("experts that a layer reads for a batch, decoding", "batch")
    for name in ("first in, first out", "by the table", "by an oracle"):
        table.add_column(name, justify="right")
    for one in found.batches:
        figures = (one.fifo, one.table, one.oracle)
        table.add_row(str(one.batch), *(f"{figure:.1f}" for figure in figures))
    return table


def _locality(found: Prediction) -> Table:
    table = _table("experts that nearby tokens repeat", "")
    table.add_column("", justify="right")
    for segment, f1 in found.srp.items():
        table.add_row(f"SRP, {segment} tokens", _share(f1))
    for (segment, size), rate in found.sch.items():
        table.add_row(f"SCH, {segment} tokens ahead, a cache of {size:g} x top-k", _share(rate))
    return table


def advice_table(advice: Advice) -> Table:
    """For people."""
    table = _table(f"of a step of {advice.step_s * 1e3:.3f} ms of MoE layers, held out", "way")
    for name in ("saves, us", "+-", "share", "elsewhere, us"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for one in advice.savings:
        there = "-" if one.elsewhere_s is None else f"{one.elsewhere_s * 1e6:.1f}"
        figures = f"{one.saved_s * 1e6:.1f}", f"{one.error_s * 1e6:.1f}", f"{one.share:.1%}", there
        table.add_row(one.way, *figures, one.verdict.replace("_", " "))
    return table


def advice_json(advice: Advice) -> dict[str, Any]:
    """For scripts."""
    return {
        "best": advice.best,
        "step_ms": advice.step_s * 1e3,
        "savings": [asdict(one) for one in advice.savings],
        "notes": list(advice.notes),
    }


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    return table


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
