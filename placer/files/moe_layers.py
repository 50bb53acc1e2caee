"""Which layers of a model have experts, by the keys that a config.json says it with.

Where a key lists the layers, it alone counts; else all rules that there are must hold. They are
those of transformers and vLLM.
"""

from collections.abc import Callable
from typing import Any

from placer.errors import ModelError

REMEDY = "write the sizes in a YAML model file instead (docs/files.md)"

Config = dict[str, Any]

BLOCKS = {
    **dict.fromkeys(("mamba", "attention", "mlp", "linear_attention", "full_attention"), False),
    "moe": True,
}
# One mark a layer, and whether that layer has experts. These outrank RULES.
MARKS: dict[str, dict[Any, bool]] = {
    "mlp_layer_types": {"sparse": True, "moe": True, "hash_moe": True, "dense": False},
    "moe_layer_freq": {1: True, 0: False},
    "is_moe_layer": {True: True, False: False},
    "hybrid_override_pattern": {"E": True, "M": False, "*": False, "-": False},
    **dict.fromkeys(("layers_block_type", "layer_types"), BLOCKS),
}
INDICES = ("moe_layers", "moe_layers_enum")  # the layers themselves; these outrank RULES, too


def _after(layer: int, dense: int) -> bool:
    return layer >= dense


def _every(layer: int, step: int) -> bool:
    return (layer + 1) % step == 0


# Which layers have experts, by a number; all rules that a config has must hold.
RULES: dict[str, Callable[[int, int], bool]] = {
    "first_k_dense_replace": _after,
    "num_dense_layers": _after,
    "n_dense_layers": _after,
    "n_dense_first_layers": _after,
    "moe_layer_num_skipped": _after,
    "dense_mlp_idx": _after,
    "moe_layer_start_index": _after,
    "moe_layer_end_index": lambda layer, last: layer <= last,
    "moe_layer_interval": _every,
    "moe_layer_frequency": _every,
    "decoder_sparse_step": _every,
    "interleave_moe_layer_step": _every,
    "moe_layer_freq": lambda layer, step: layer % step == 0,
    "moe_every_n_layers": lambda layer, step: layer % step == 1,
}
PERIOD, OFFSET = "expert_layer_period", "expert_layer_offset"
DENSE = "mlp_only_layers"

KEYS = {*MARKS, *INDICES, *RULES, PERIOD, OFFSET, DENSE}


def found(config: Config, key: str, experts: Any, total: int) -> tuple[int, ...]:
    """The layers, of ``total``, that have experts; none if the model is dense.

    experts: how many there are, in each layer or as a list of all; key: where that stands
    """
    said = {
        name: layers
        for name in (*MARKS, *INDICES)
        if name in config and (layers := _listed(name, config[name], total)) is not None
    }
    if len(set(said.values())) > 1:
        raise ModelError(f"{' and '.join(said)} name other layers: correct one of them")
    layers = next(iter(said.values())) if said else _ruled(config, total)
    if isinstance(experts, list):
        counts = experts if len(experts) >= total else (experts[:1] or [0]) * total
        return tuple(layer for layer in layers if whole(key, counts[layer] or 0) > 1)
    return layers if whole(key, experts) > 1 else ()


def is_of_experts(value: Any) -> bool:
    """Whether it is a list that says of layers whether they have experts."""
    return isinstance(value, list) and any(
        isinstance(mark, str) and mark in {"moe", "expert", "experts", "sparse", "dense"}
        for mark in value
    )


def _listed(key: str, value: Any, total: int) -> tuple[int, ...] | None:
    """The layers that a list names or marks; None if it is no such list."""
    if key in INDICES:
        return _indices(key, value, total)
    marks = MARKS[key]
    if not isinstance(value, list | str):
        return None  # moe_layer_freq as a number
    strange = [mark for mark in value if not isinstance(mark, (str, int)) or mark not in marks]
    if marks is BLOCKS and not is_of_experts(value):
        return None  # kinds of attention
    if strange:
        raise ModelError(f"{key} has {strange[0]!r:.40}, which is not understood: {REMEDY}")
    if len(value) < total:
        raise ModelError(f"{key} has {len(value)} marks for {total} layers: is the file cut short?")
    return tuple(layer for layer in range(total) if marks[value[layer]])  # MTP layers come after


def _indices(key: str, value: Any, total: int) -> tuple[int, ...]:
    try:
        given = map(int, value.split(",")) if isinstance(value, str) else iter(value)
        layers = sorted({whole(key, layer) for layer in given})
    except (TypeError, ValueError) as error:
        raise ModelError(f"{key} is {value!r:.40}: it must be a list of layers") from error
    if layers and not 0 <= layers[0] <= layers[-1] < total:
        raise ModelError(
            f"{key} goes from {layers[0]} to {layers[-1]} in a model of {total} layers"
        )
    return tuple(layers)


def _ruled(config: Config, total: int) -> tuple[int, ...]:
    """The layers that all of a config's rules leave."""
    layers = list(range(total))
    for key, rule in RULES.items():
        if key in config:
            value = _rule_value(key, config[key], total)
            layers = [layer for layer in layers if rule(layer, value)]
    if PERIOD in config or OFFSET in config:
        period, offset = (whole(key, config.get(key)) for key in (PERIOD, OFFSET))
        layers = [layer for layer in layers if layer % max(period, 1) == offset]
    dense = _indices(DENSE, config.get(DENSE, []), total)
    return tuple(layer for layer in layers if layer not in dense)


def _rule_value(key: str, value: Any, total: int) -> int:
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        value = value[0]  # ERNIE's: one for text and one for images
    if key == "moe_layer_end_index" and value == -1:
        return total
    is_step = RULES[key] is not _after and key != "moe_layer_end_index"
    return whole(key, value, least=1 if is_step else 0)


def whole(key: str, value: Any, least: int = 0) -> int:
    """The value, if it is a whole number of ``least`` or more. Raises ModelError."""
    if type(value) is not int or value < least:
        raise ModelError(f"{key} is {value!r:.40}: it must be a whole number of {least} or more")
    return value
