"""A Hugging Face config.json in placer's words.

Model families call the same thing by many names and have many rules for which layers have
experts; the tables here are what transformers and vLLM read. A key about experts or layers that
is in no table is refused: where experts stand is never guessed.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from placer.bounds import MOST_LAYERS
from placer.errors import ModelError
from placer.files import moe_layers
from placer.files.moe_layers import REMEDY, whole
from placer.files.quantization import precision
from placer.model import ModelShape

Config = dict[str, Any]

# Where the language model stands in a config of more than that; what is inside outranks.
PARTS = ("thinker_config", "language_config", "llm_config", "text_config", "ffn_config")

# Other names of one key. Two that disagree are refused.
NAMES = {
    "hidden": ("hidden_size", "d_model", "n_embd"),
    "hidden_layers": ("num_hidden_layers", "num_layers", "n_layers", "n_layer"),
    "experts": (
        "n_routed_experts",
        "num_experts",
        "num_local_experts",
        "moe_num_experts",
        "num_routed_experts",
    ),
    "top_k": (
        "num_experts_per_tok",
        "num_experts_per_token",
        "experts_per_token",
        "moe_topk",
        "moe_top_k",
        "moe_k",
        "moe_router_topk",
        "top_k_experts",
        "num_selected_experts",
    ),
    "groups": ("n_group", "num_expert_group"),
    "zero_experts": ("zero_expert_num",),
    # What experts see of a token.
    "latent": ("moe_latent_size", "routed_expert_hidden_size", "moe_hidden_size"),
}
# The first of these is an expert's.
SIZES = (
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "moe_ffn_hidden_size",
    "ffn_hidden_size",
    "intermediate_size",
)
ACTIVATIONS = ("mlp_hidden_act", "hidden_act", "hidden_activation")
WITHOUT_A_GATE = {"relu2", "relu_squared", "squared_relu"}
SWITCHES = ("enable_moe_block", "is_moe", "use_moe")  # false: no experts, whatever else is there

UNDERSTOOD = (
    {key for names in NAMES.values() for key in names}
    | {*SIZES, *SWITCHES, *moe_layers.KEYS}
    | {"expert_dtype"}  # quantization.py
)
ABOUT_EXPERTS = re.compile("expert|moe|sparse|dense|block_configs")
# Of other parts of the model, or of how routers score, train and compute: not where experts are.
ELSEWHERE = re.compile("^(mtp|vision|audio|talker|draft)_|attn|attention|shared?_experts?")
HOW = re.compile(
    "router|routing|gat(e|ing)(?!d)|loss|aux|coef|capacity|drop|jitter|noise|norm|bias|scal|score"
    "|softcap|softmax|sigmoid|act$|act_fn|activation|dtype|fp32|kernel|backend|impl|dispatch"
    "|overlap|fusion|gemm|permut|parallel|selection_fn|swiglu|temperature|token_type|balanc|assign"
)
WHERE = re.compile("layer|freq|step|every|interval|^(n|num)_")
ASIDE = {"quantization_config", "compression_config"}  # quantization.py
HARMLESS = {
    "dense_intermediate_size",
    "prefix_dense_intermediate_size",
    "prefix_dense_sliding_window_pattern",
    "moe_group",
    "moe_group_experts",
    "residual_moe",
    "shared_moe_mode",
    "use_mixed_mlp_moe",
    "zero_expert_type",
    # Step-3.5's class has them and does not look.
    "moe_every_n_layer",
    "moe_layer_offset",
}
DENSE = "the model has no experts, all its layers are dense: give a Mixture-of-Experts model"


@dataclass(frozen=True, slots=True)
class Reading:
    """A model as understood, what its bits follow from, and what else is worth knowing."""

    shape: ModelShape
    precision: str
    notes: tuple[str, ...] = ()


def read_config(data: Config, name: str) -> Reading:
    """What a config.json says of the model ``name``.

    Raises ModelError if the model has no experts, or what is said of them is not understood.
    """
    config = _merged(data)
    unknown = list(_not_understood(config))
    experts_key, experts = _named(config, "experts")
    if experts is None and not any(re.search("expert|moe", key) for key in unknown):
        raise ModelError(DENSE)
    if any(config.get(key) is False for key in SWITCHES):
        raise ModelError(DENSE)
    if unknown:
        raise ModelError(f"{unknown[0]} is not understood: {REMEDY}")
    if config.get("is_encoder_decoder"):
        raise ModelError(f"is_encoder_decoder: it has layers of two kinds: {REMEDY}")
    total = _total(config)
    where = moe_layers.found(config, experts_key, experts, total)
    if not where:
        raise ModelError(DENSE)

    def number(names: str, default: int | None = None) -> int:
        return _number(*_named(config, names), where, total, default)

    size = next((key for key in SIZES if key in config), SIZES[0])
    hidden, latent = number("hidden"), number("latent", default=0)
    gated = not any(str(config.get(key)) in WITHOUT_A_GATE for key in ACTIVATIONS)
    weights = precision(config, where, gated)
    shape = ModelShape(
        name=name,
        layers=len(where),
        experts=number("experts"),
        top_k=number("top_k"),
        hidden=latent or hidden,
        moe_intermediate=_number(size, config.get(size), where, total),
        groups=number("groups", default=1) or 1,
        moe_layers=where,
        hidden_layers=total,
        matrices=3 if gated else 2,
        zero_experts=number("zero_experts", default=0),
        weight_bits=weights.bits,
    )
    notes = [f"experts see {latent} values of a token's {hidden}"] if latent else []
    return Reading(shape, weights.source, (*notes, *weights.notes))


def _merged(data: Config) -> Config:
    """The language model's keys. A null is as good as a missing key."""
    parts = [data]
    for part in parts:
        for key in PARTS:
            inner = part.get(key)
            if isinstance(inner, dict):
                parts.append(inner)
            elif inner is not None:
                raise ModelError(f"{key} is {inner!r:.40}: it must hold keys and values")
    return {key: value for part in parts for key, value in part.items() if value is not None}


def _not_understood(config: Config) -> Iterator[str]:
    """Keys about experts or layers that nothing here reads, those inside other parts included."""
    for key in sorted(config):
        value = config[key]
        if _unknown(key, value):
            yield key
        if key not in {*PARTS, *ASIDE} and not ELSEWHERE.search(key):
            yield from (f"{key}.{inner}" for inner in _experts_inside(value))


def _unknown(key: str, value: Any) -> bool:
    if ELSEWHERE.search(key) or key in UNDERSTOOD | HARMLESS:
        return False
    if moe_layers.is_of_experts(value):
        return True
    says_nothing = value is False or value in ([], {})
    is_meant = ABOUT_EXPERTS.search(key) and not says_nothing
    return bool(is_meant) and (not HOW.search(key) or bool(WHERE.search(key)))


def _experts_inside(part: Any) -> Iterator[str]:
    """What a part, or a list of parts, says of experts."""
    for inner in part if isinstance(part, list) else [part]:
        for of, value in inner.items() if isinstance(inner, dict) else ():
            key = str(of)  # engines hand configs on whose labels are counted, not named
            is_said = bool(value) and not (type(value) is int and value == 1)
            if is_said and re.search("expert|moe", key) and not ELSEWHERE.search(key):
                yield key
            elif isinstance(value, dict | list):
                yield from (f"{key}.{deeper}" for deeper in _experts_inside(value))


def _named(config: Config, what: str) -> tuple[str, Any]:
    """The key of ``what`` that there is, and its value; all its names and None if there is none."""
    found = {key: config[key] for key in NAMES[what] if key in config}
    values = list(found.values())
    if any(value != values[0] for value in values):
        said = " but ".join(f"{key} is {value!r:.40}" for key, value in found.items())
        raise ModelError(f"{said}: correct one of them")
    return next(iter(found.items())) if found else (" or ".join(NAMES[what]), None)


def _number(
    key: str, value: Any, where: Sequence[int], total: int, default: int | None = None
) -> int:
    """A whole number, or what is the same in all layers with experts of a list of them."""
    if value is None and default is not None:
        return default
    if value is None:
        raise ModelError(f"no {key}: is it a whole config.json?")
    if isinstance(value, list) and value:
        of_layers = [value[layer] for layer in where] if len(value) >= total else value
        if any(one != of_layers[0] for one in of_layers):
            raise ModelError(f"{key} has several values ({value!r:.60}): {REMEDY}")
        value = of_layers[0]
    return whole(key, value)


def _total(config: Config) -> int:
    """The model's layers, with experts or without."""
    key, value = _named(config, "hidden_layers")
    if value is None:  # Nemotron-H's newest have one mark a layer instead
        marks = [config[key] for key in moe_layers.MARKS if isinstance(config.get(key), list | str)]
        value = len(marks[0]) if marks else None
    if value is None:
        raise ModelError(f"no {key}: is it a whole config.json?")
    total = whole(key, value, least=1)
    if total > MOST_LAYERS:
        raise ModelError(f"{key} is {total}: it must be {MOST_LAYERS} at most")
    return total
