"""How many bits an expert's weight has, by the quantization that a config.json names.

Scales and zero points count with their share of a weight; the scale of a whole channel or of a
block of 128 x 128 is nothing to speak of. What a method leaves out of itself has 16 bits; where
these are some of the experts, the bits are the mean over all.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from placer.errors import ModelError
from placer.files.modules import EVERYTHING, MATRICES, PLAIN, Finder, Settings

HALF, BYTE = 16, 8  # bits of a group's scale: in half precision; microscaled
MXFP4, MXFP8, NVFP4 = 4 + BYTE / 32, 8 + BYTE / 32, 4 + BYTE / 16
DTYPES = {
    **dict.fromkeys(("fp4", "mxfp4"), MXFP4),
    **dict.fromkeys(("fp8", "float8_e4m3fn", "int8"), 8.0),
    **dict.fromkeys(("bf16", "bfloat16", "fp16", "float16"), PLAIN),
    "nvfp4": NVFP4,
    "mxfp8": MXFP8,
}
REMEDY = "write the sizes and weight_bits in a YAML model file instead (docs/files.md)"

LEFT_OUT = (
    "ignore",
    "ignored_layers",
    "modules_to_not_convert",
    "exclude_modules",
    "exclude",
    "llm_int8_skip_modules",
)

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Precision:
    """bits: of a weight, with its share of the scales; source: what says so"""

    bits: float
    source: str
    notes: tuple[str, ...] = ()


def precision(config: Config, layers: Sequence[int], gated: bool = True) -> Precision:
    """Of the experts in ``layers``. Raises ModelError for a method that is not known."""
    given = config.get("quantization_config") or config.get("compression_config") or {}
    if not isinstance(given, dict):
        raise ModelError(f"quantization_config is {given!r:.40}: it must hold keys and values")
    if (dtype := _expert_dtype(config, given)) is not None:
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ModelError(f"expert_dtype {dtype!r:.40} is not known: {REMEDY}")
        return Precision(DTYPES[dtype], f"expert_dtype {dtype}")
    if not given:
        return Precision(PLAIN, "not quantized")
    named = given.get("quant_method") or ("modelopt" if "quantization" in given else "none")
    method = str(named).lower().replace("_", "-")
    if method not in METHODS:
        raise ModelError(f"quant_method {method!r:.40} is not known: {REMEDY}")
    try:
        return _mean(method, METHODS[method](given), layers, gated)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, re.error) as error:
        why = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ModelError(
            f"the settings of quant_method {method!r} are not understood ({why:.80}): {REMEDY}"
        ) from error


def _expert_dtype(config: Config, quantization: Config) -> Any:
    found = config.get("expert_dtype", quantization.get("expert_dtype"))
    if found is None and quantization and str(config.get("model_type")).startswith("deepseek_v4"):
        return "fp4"  # what its engines take it for
    return found


def _mean(method: str, settings: Settings, layers: Sequence[int], gated: bool) -> Precision:
    """Over the layers, and over an expert's matrices."""
    finder = Finder(settings)
    matrices = [names for name, names in MATRICES.items() if gated or name != "gate"]
    bits = [finder.bits(layer, names) for layer in layers for names in matrices]
    mean = round(sum(bits) / len(bits), 2)
    if mean == PLAIN:
        return Precision(PLAIN, f"{method}, which leaves the experts as they are")
    if len(kinds := sorted(set(bits))) == 1:
        return Precision(mean, method)
    said = ", ".join(f"{one:g}" for one in kinds)
    return Precision(mean, method, (f"experts' matrices have {said} bits: {mean:g} is the mean",))


def _settings(quantization: Config, bits: float) -> Settings:
    """All that is not left out has ``bits``."""
    left_out = [name for key in LEFT_OUT for name in quantization.get(key) or ()]
    return [*((str(name), PLAIN) for name in left_out), (EVERYTHING, bits)]


def _grouped(bits: float, group: int | None, scale: float) -> float:
    """With a scale for each group; without groups it is for a channel or more."""
    return bits + scale / group if group is not None and group > 0 else float(bits)


def _constant(bits: float) -> Callable[[Config], Settings]:
    return lambda quantization: _settings(quantization, bits)


def _fp8(quantization: Config) -> Settings:
    height, width = quantization.get("weight_block_size") or (128, 128)
    return _settings(quantization, 8 + 32 / (height * width))


def _integers(quantization: Config) -> Settings:
    """GPTQ, AWQ and their like: groups with a scale and, as engines pack them, a zero point."""
    settings: Settings = []
    for expression, changes in (quantization.get("dynamic") or {}).items():
        bits = PLAIN if expression[:2] == "-:" else _packed(quantization | changes)
        settings.append(("re:" + re.sub(r"^[+-]:", "", expression), bits))
    for name, changes in (quantization.get("extra_config") or {}).items():
        pattern = f"re:{name}" if re.search(r"[\\^$]|\.\*", name) else name
        settings.append((pattern, _packed(quantization | changes)))
    return settings + _settings(quantization, _packed(quantization))


def _packed(quantization: Config) -> float:
    bits = quantization.get("bits", quantization.get("w_bit"))
    if bits is None:
        raise KeyError("bits")
    if type(bits) is not int or bits < 1:
        raise ValueError(f"bits is {bits!r:.20}")
    if bits >= PLAIN:
        return PLAIN
    zero = 0 if quantization.get("zero_point") is False else bits
    group = quantization.get("group_size", quantization.get("q_group_size"))
    return _grouped(bits, group, HALF + zero)


def _compressed(quantization: Config) -> Settings:
    """compressed-tensors. Targets are names of modules, or else of classes."""
    sparsity = (quantization.get("sparsity_config") or {}).get("format") or "dense"
    if sparsity != "dense":
        raise ValueError(f"sparsity {sparsity}")
    by_name: Settings = []
    by_class: Settings = []
    for group in (quantization.get("config_groups") or {}).values():
        bits = _tensor(group.get("weights"))
        for target in group.get("targets") or ["Linear"]:
            if target == "Linear" or re.fullmatch(r"[A-Z]\w*(MoE|Experts?)\w*", target):
                by_class.append((EVERYTHING, bits))
            else:
                by_name.append((target, bits))
    return [*_settings(quantization, PLAIN)[:-1], *by_name, *by_class]


def _tensor(weights: Config | None) -> float:
    """Bits of what compressed-tensors and Quark call a tensor's settings."""
    if not weights:
        return PLAIN
    bits, is_float = weights["num_bits"], weights.get("type", "int") == "float"
    group = weights.get("group_size")
    if is_float and bits == 4:
        return _grouped(bits, group or 16, BYTE)
    zero = 0 if is_float or weights.get("symmetric", True) else bits
    return _grouped(bits, group, BYTE if is_float else HALF + zero)


def _modelopt(quantization: Config) -> Settings:
    quantization = quantization | (quantization.get("quantization") or {})
    if not (algo := quantization.get("quant_algo")):
        return _settings(quantization, PLAIN)
    if algo.upper() == "MIXED_PRECISION":
        layers = quantization["quantized_layers"]
        mixed = [(name, _algorithm(one["quant_algo"], one)) for name, one in layers.items()]
        return [*_settings(quantization, PLAIN)[:-1], *mixed]
    return _settings(quantization, _algorithm(algo, quantization))


def _algorithm(name: str, quantization: Config) -> float:
    """Of NVIDIA's Model Optimizer."""
    name = name.upper()
    if "MXFP" in name:
        return MXFP8 if name == "MXFP8" else MXFP4
    if "NVFP4" in name:
        return _grouped(4, quantization.get("group_size") or 16, BYTE)
    if name.startswith(("W4A16", "W4A8", "INT4")):
        return _grouped(4, quantization.get("group_size") or 128, HALF)
    if name.startswith(("FP8", "W8A8", "INT8")):
        return 8.0
    raise ValueError(f"quant_algo {name}")


def _bitsandbytes(quantization: Config) -> Settings:
    if quantization.get("load_in_8bit") or quantization.get("_load_in_8bit"):
        return _settings(quantization, 8)
    if quantization.get("load_in_4bit") or quantization.get("_load_in_4bit"):
        # A scale for 64 values: 32 bits, or 8 and one more of 32 for 256 of them.
        twice = quantization.get("bnb_4bit_use_double_quant")
        return _settings(quantization, 4 + ((8 + 32 / 256) if twice else 32) / 64)
    raise ValueError("neither load_in_8bit nor load_in_4bit")


def _quark(quantization: Config) -> Settings:
    def bits(config: Config) -> float:
        weight = config.get("weight")
        weight = weight[0] if isinstance(weight, list) else weight
        if not weight:
            return PLAIN
        kind, digits = re.match(r"(fp|int|uint|mxfp)(\d+)", weight["dtype"]).groups()  # type: ignore[union-attr]
        symmetric = weight.get("symmetric") is not False
        of_float = "float" if "fp" in kind else "int"
        group = 32 if kind == "mxfp" else weight.get("group_size")
        settings = {"num_bits": int(digits), "type": of_float, "group_size": group}
        return _tensor(settings | {"symmetric": symmetric})

    by_name = (quantization.get("layer_quant_config") or {}).items()
    overall = _settings(quantization, bits(quantization["global_quant_config"]))
    return [*overall[:-1], *((name, bits(config)) for name, config in by_name), overall[-1]]


def _hqq(quantization: Config) -> Settings:
    weights = quantization["quant_config"]["weight_quant_params"]
    scale = 2 * HALF  # and a zero point as wide
    return _settings(quantization, _grouped(weights["nbits"], weights.get("group_size"), scale))


def _fp_quant(quantization: Config) -> Settings:
    return _settings(quantization, {"mxfp4": MXFP4, "nvfp4": NVFP4}[quantization["forward_dtype"]])


METHODS: dict[str, Callable[[Config], Settings]] = {
    "none": _compressed,
    "compressed-tensors": _compressed,
    **dict.fromkeys(("fp8", "deepseek-v4-fp8", "fp8-per-block"), _fp8),
    **dict.fromkeys(
        ("fbgemm-fp8", "fp8-per-tensor", "fp8-per-channel", "experts-int8", "eetq"), _constant(8)
    ),
    **dict.fromkeys(("mxfp4", "gpt-oss-mxfp4"), _constant(MXFP4)),
    **dict.fromkeys(("mxfp8", "modelopt-mxfp8"), _constant(MXFP8)),
    **dict.fromkeys(("nvfp4", "nvfp4-per-token", "modelopt-fp4"), _constant(NVFP4)),
    **dict.fromkeys(("modelopt", "modelopt-mixed"), _modelopt),
    **dict.fromkeys(
        ("gptq", "gptq-marlin", "auto-gptq", "awq", "awq-marlin", "auto-awq", "moe-wna16"),
        _integers,
    ),
    **dict.fromkeys(("auto-round", "intel/auto-round", "inc"), _integers),
    **dict.fromkeys(("bitsandbytes", "bitsandbytes-4bit", "bitsandbytes-8bit"), _bitsandbytes),
    "quark": _quark,
    "hqq": _hqq,
    "fp-quant": _fp_quant,
}
