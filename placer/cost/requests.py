"""What the seconds of a decision are, from hardware and model."""

from typing import NamedTuple

from placer.cost import compute, links
from placer.problem import Problem


class Costs(NamedTuple):
    """GPU seconds of hardware and model.

    local_s:   saved by a token all of whose activations are local
    prefill_s: of computing a token of a prompt
    read_s:    of reading an expert of one layer once
    band:      of ``eldr``: how far below the best a similarity may be, as a share
    """

    local_s: float
    prefill_s: float
    read_s: float
    band: float = 0.05


def costs_of(problem: Problem) -> Costs:
    """Of an engine that serves ``problem``: its model on its topology, under its dispatch.

    A token that is owned where it has an expert is not sent there and back, once a layer; under
    ``allgather`` every rank gets it anyway. A prompt token costs its experts' arithmetic. GPUs work
    side by side, so that seconds are of one GPU.
    """
    model, topology = problem.model, problem.topology
    rate = links.local_rate(topology) if topology.nodes == 1 else topology.network.bytes_per_s
    sent = 0.0 if problem.objective.dispatch == "allgather" else 1.0
    exchange_s = sent * (model.dispatch_bytes + model.combine_bytes) / rate
    return Costs(
        local_s=model.layers * exchange_s,
        prefill_s=model.layers * model.top_k * compute.activation_seconds(problem),
        read_s=compute.reading_seconds(problem),
    )
