"""How many of their experts tokens find where they are."""

import numpy as np

from placer.arrays import FloatArray, IntArray
from placer.placement import Placement
from placer.trace import Trace


def local_activation_rate(trace: Trace, placement: Placement, homes: IntArray) -> float:
    """LAR: share of (token, layer, k) activations that the token's home GPU can serve.

    homes: [tokens] GPUs, or [tokens, layers] where tokens change GPUs between layers
    """
    return int(_local(trace, placement, homes).sum()) / trace.expert_ids.size


def local_by_layer(trace: Trace, placement: Placement, homes: IntArray) -> FloatArray:
    """[layers] the same of each layer."""
    return _local(trace, placement, homes) / (trace.tokens * trace.top_k)


def _local(trace: Trace, placement: Placement, homes: IntArray) -> IntArray:
    """[layers] activations that the home can serve."""
    held = placement.held_in(placement.gpus)
    home = np.broadcast_to(homes.reshape(trace.tokens, -1), (trace.tokens, trace.layers))
    local = [
        held[layer, trace.expert_ids[:, layer], home[:, layer, None]].sum()
        for layer in range(trace.layers)
    ]
    return np.array(local)
