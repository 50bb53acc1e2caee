"""A config.json as the ecosystem writes it, in placer's words."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placer.errors import ModelError
from placer.files.configs import read_config
from placer.files.specs import read_model, understand
from placer.model import PRESETS, matching

# Four layers of eight experts, top-2, that see 64 values of a token.
PLAIN = {
    "model_type": "mine",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}


def layers(**rules: Any) -> list[int]:
    return list(read_config(PLAIN | rules, "mine").shape.moe_layers)


@pytest.mark.parametrize(
    ("rules", "where"),
    [
        ({}, [0, 1, 2, 3]),
        ({"first_k_dense_replace": 1}, [1, 2, 3]),
        ({"num_dense_layers": 2}, [2, 3]),
        ({"n_dense_first_layers": 3}, [3]),
        ({"first_k_dense_replace": 2, "moe_layer_freq": 2, "num_hidden_layers": 6}, [2, 4]),
        ({"moe_layer_freq": [0, 1, 0, 1]}, [1, 3]),
        ({"decoder_sparse_step": 2}, [1, 3]),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [0, 2]}, [1, 3]),
        ({"mlp_only_layers": None}, [0, 1, 2, 3]),
        ({"interleave_moe_layer_step": 2}, [1, 3]),
        ({"interleave_moe_layer_step": 1, "moe_layers": [0, 3]}, [0, 3]),
        ({"expert_layer_period": 3, "expert_layer_offset": 1, "num_hidden_layers": 9}, [1, 4, 7]),
        ({"mlp_layer_types": ["dense", "sparse", "sparse", "dense"]}, [1, 2]),
        ({"mlp_layer_types": ["dense", *["sparse"] * 3], "first_k_dense_replace": 2}, [1, 2, 3]),
        ({"moe_layers_enum": "1,3"}, [1, 3]),
        (
            {"moe_layer_start_index": 1, "moe_layer_end_index": 3, "moe_layer_interval": 2},
            [1, 3],
        ),
        ({"hybrid_override_pattern": "ME*E"}, [1, 3]),
        ({"num_experts": [0, 8, 0, 8]}, [1, 3]),
    ],
)
def test_layers_with_experts_are_where_the_models_rule_says(
    rules: dict[str, Any], where: list[int]
) -> None:
    assert layers(**rules) == where


@given(
    st.integers(1, 40),
    st.integers(0, 5),
    st.integers(1, 5),
    st.sampled_from(["moe_layer_freq", "decoder_sparse_step", "interleave_moe_layer_step"]),
)
def test_rules_name_layers_of_the_model_or_say_that_there_are_none(
    total: int, dense: int, step: int, key: str
) -> None:
    config = PLAIN | {"num_hidden_layers": total, "first_k_dense_replace": dense, key: step}
    offset = 0 if key == "moe_layer_freq" else 1
    if not any(layer >= dense and (layer + offset) % step == 0 for layer in range(total)):
        with pytest.raises(ModelError, match="no experts"):
            read_config(config, "mine")
        return
    shape = read_config(config, "mine").shape
    assert shape.hidden_layers == total
    assert dense <= shape.moe_layers[0] <= shape.moe_layers[-1] < total
    assert {b - a for a, b in zip(shape.moe_layers, shape.moe_layers[1:], strict=False)} <= {step}


# What each family calls it, with the values of the published config.json.
FAMILIES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int, int, int]]] = {
    "dbrx": (
        {
            "d_model": 6144,
            "n_layers": 40,
            "ffn_config": {"moe_num_experts": 16, "moe_top_k": 4, "ffn_hidden_size": 10752},
        },
        (40, 0, 16, 4, 6144, 10752),
    ),
    "ernie": (
        {
            "hidden_size": 8192,
            "num_hidden_layers": 54,
            "moe_num_experts": 64,
            "moe_k": 8,
            "moe_intermediate_size": 3584,
            "intermediate_size": 28672,
            "moe_layer_start_index": 3,
            "moe_layer_end_index": 53,
            "moe_layer_interval": 1,
        },
        (51, 3, 64, 8, 8192, 3584),
    ),
    "gemma4": (
        {
            "text_config": {
                "hidden_size": 2816,
                "num_hidden_layers": 30,
                "enable_moe_block": True,
                "num_experts": 128,
                "top_k_experts": 8,
                "moe_intermediate_size": 704,
                "intermediate_size": 2112,
            }
        },
        (30, 0, 128, 8, 2816, 704),
    ),
    "hunyuan": (
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_experts": 64,
            "moe_topk": [8] * 32,
            "moe_intermediate_size": [3072] * 32,
            "num_shared_expert": [1] * 32,
            "intermediate_size": 3072,
        },
        (32, 0, 64, 8, 4096, 3072),
    ),
    "kimi-linear": (
        {
            "hidden_size": 2304,
            "num_hidden_layers": 27,
            "num_experts": 256,
            "num_experts_per_token": 8,
            "moe_intermediate_size": 1024,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "num_expert_group": 1,
        },
        (26, 1, 256, 8, 2304, 1024),
    ),
    "llama4": (
        {
            "text_config": {
                "hidden_size": 5120,
                "num_hidden_layers": 48,
                "num_local_experts": 128,
                "num_experts_per_tok": 1,
                "intermediate_size": 8192,
                "intermediate_size_mlp": 16384,
                "interleave_moe_layer_step": 2,
            },
            "vision_config": {"hidden_size": 1408},
        },
        (24, 1, 128, 1, 5120, 8192),
    ),
    "lfm2": (
        {
            "hidden_size": 2048,
            "num_hidden_layers": 24,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1792,
            "intermediate_size": 7168,
            "num_dense_layers": 2,
        },
        (22, 2, 32, 4, 2048, 1792),
    ),
    "step": (
        {
            "hidden_size": 4096,
            "num_hidden_layers": 45,
            "moe_num_experts": 288,
            "moe_top_k": 8,
            "moe_intermediate_size": 1280,
            "intermediate_size": 11264,
            "moe_layers_enum": ",".join(map(str, range(3, 45))),
        },
        (42, 3, 288, 8, 4096, 1280),
    ),
    "thinker": (
        {"thinker_config": {"text_config": PLAIN}, "talker_config": {"hidden_size": 7}},
        (4, 0, 8, 2, 64, 32),
    ),
    "nulls": (
        PLAIN | {"n_routed_experts": None, "moe_intermediate_size": None, "intermediate_size": 128},
        (4, 0, 8, 2, 64, 128),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_call_the_same_by_other_names(family: str) -> None:
    config, want = FAMILIES[family]
    shape = read_config(config, family).shape
    found = (shape.layers, shape.moe_layers[0], shape.experts, shape.top_k)
    assert (*found, shape.hidden, shape.moe_intermediate) == want


def test_zero_experts_have_ids_and_no_weights() -> None:
    config = {
        "hidden_size": 6144,
        "num_layers": 28,
        "n_routed_experts": 512,
        "zero_expert_num": 256,
        "zero_expert_type": "identity",
        "moe_topk": 12,
        "expert_ffn_hidden_size": 2048,
        "ffn_hidden_size": 12288,
    }
    shape = read_config(config, "longcat").shape
    assert (shape.layers, shape.top_k, shape.hidden) == (28, 12, 6144)
    assert (shape.experts, shape.zero_experts, shape.moe_intermediate) == (512, 256, 2048)


def test_experts_may_see_fewer_values_than_a_token_has() -> None:
    found = read_config(PLAIN | {"moe_hidden_size": 16}, "mine")
    assert found.shape.hidden == 16
    assert found.notes == ("experts see 16 values of a token's 64",)


def test_an_expert_without_a_gate_has_two_matrices() -> None:
    gated, other = (
        read_config(PLAIN | {"mlp_hidden_act": act}, "mine").shape for act in ("silu", "relu2")
    )
    assert gated.expert_bytes == 3 * 64 * 32 * 2
    assert other.expert_bytes == 2 * 64 * 32 * 2
    assert other.expert_flops == 4 * 64 * 32


def linear(**weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, "ignore": ["lm_head"]}


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        (None, 16),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8),
        (linear(num_bits=8, type="float", strategy="channel", symmetric=True), 8),
        (linear(num_bits=4, type="int", group_size=32, symmetric=True), 4.5),
        (linear(num_bits=4, type="float", group_size=16), 4.5),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, 8),
        # 4 bits, and for each 128 of them a scale of 16 and a zero point of 4.
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, 4 + 20 / 128),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4.5),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, 8),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp.experts"]}, 16),
        # The experts of one layer of four are left as they are: (3 * 8 + 16) / 4.
        ({"quant_method": "fp8", "ignored_layers": ["model.layers.0.mlp.experts"]}, 10),
    ],
)
def test_bits_are_those_of_the_quantization_with_its_scales(
    quantization: dict[str, Any] | None, bits: float
) -> None:
    found = read_config(PLAIN | {"quantization_config": quantization}, "mine").shape
    assert found.weight_bits == pytest.approx(bits, abs=0.006)


# Layers, the first dense ones, experts, hidden and expert size, as published.
GLM, KIMI, DEEPSEEK = (92, 3, 160, 5120, 1536), (61, 1, 384, 7168, 2048), (61, 3, 256, 7168, 2048)


@pytest.mark.parametrize(
    ("sizes", "quantization", "gb"),
    [
        (GLM, linear(num_bits=8, type="float", strategy="channel", symmetric=True), 336.0),
        (KIMI, linear(num_bits=4, type="int", group_size=32, symmetric=True), 570.8),
        (DEEPSEEK, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, 367.8),
        (DEEPSEEK, None, 1307.8),
    ],
)
def test_experts_take_the_memory_that_their_bits_do(
    sizes: tuple[int, ...], quantization: dict[str, Any] | None, gb: float
) -> None:
    names = ("num_hidden_layers", "first_k_dense_replace", "num_experts", "hidden_size")
    config = dict(zip((*names, "moe_intermediate_size"), sizes, strict=True))
    found = read_config(PLAIN | config | {"quantization_config": quantization}, "mine").shape
    assert found.layers * found.experts * found.expert_bytes / 1e9 == pytest.approx(gb, abs=0.05)


def test_quantization_may_stand_outside_the_text_part() -> None:
    config = {"text_config": PLAIN, "quantization_config": {"quant_method": "fp8"}}
    assert read_config(config, "mine").shape.weight_bits == 8


def test_the_experts_own_type_outranks_the_method() -> None:
    config = PLAIN | {"expert_dtype": "fp4", "quantization_config": {"quant_method": "fp8"}}
    assert read_config(config, "mine").shape.weight_bits == 4.25


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 9}, "has no experts"),
        (PLAIN | {"enable_moe_block": False}, "has no experts"),
        (PLAIN | {"num_experts": 1}, "has no experts"),
        ({"hidden_size": 64, "block_configs": [{"ffn": {"ffn_mult": 2}}]}, "has no experts"),
        (PLAIN | {"experts_only_on_sundays": 3}, "experts_only_on_sundays is not understood"),
        (PLAIN | {"moe_layer_skip": 2}, "moe_layer_skip is not understood"),
        (PLAIN | {"num_local_experts": 16}, "num_local_experts is 16: correct one of them"),
        (PLAIN | {"mlp_layer_types": ["dense", "odd", "sparse", "sparse"]}, "has 'odd'"),
        (PLAIN | {"moe_layer_freq": [1, 0]}, "2 marks for 4 layers"),
        (PLAIN | {"mlp_only_layers": [7]}, "in a model of 4 layers"),
        (PLAIN | {"moe_intermediate_size": [32, 32, 32, 64]}, "has several values"),
        (PLAIN | {"num_experts": "8"}, "num_experts is '8'"),
        ({"hidden_size": 64, "decoder": PLAIN}, "decoder.num_experts is not understood"),
        (
            {"hidden_size": 64, "block_configs": [{"ffn": {"moe": {"n": 8}}}]},
            "block_configs is not",
        ),
        ({"hidden_size": 64, "num_routing_experts": 8}, "num_routing_experts is not understood"),
        (PLAIN | {"ffn_types": ["dense", *["moe"] * 3]}, "ffn_types is not understood"),
        (PLAIN | {"layer_types": ["dense", *["sparse"] * 3]}, "layer_types has 'dense'"),
        (PLAIN | {"expert_layer_offset": 1}, "expert_layer_period is None"),
        (PLAIN | {"text_config": [1]}, "text_config is [1]"),
        (PLAIN | {"quantization_config": {"quant_method": "gptq", "bits": "4"}}, "bits is '4'"),
        (PLAIN | {"num_experts_per_tok": "two"}, "must be a whole number"),
        (PLAIN | {"quantization_config": {"quant_method": "tomorrow"}}, "'tomorrow' is not known"),
        (PLAIN | {"num_experts_per_tok": None}, "no num_experts_per_tok or"),
    ],
)
def test_what_is_not_understood_is_an_error_and_no_guess(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError) as caught:
        read_config(config, "mine")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_routers_and_training_are_told_is_of_no_matter() -> None:
    more = {
        "router_aux_loss_coef": 0.001,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "n_shared_experts": 1,
        "shared_expert_intermediate_size": 512,
        "moe_router_enable_expert_bias": True,
        "topk_method": "noaux_tc",
        "output_router_logits": False,
        "num_nextn_predict_layers": 1,
    }
    assert layers(**more) == [0, 1, 2, 3]


def test_an_engines_config_counts_its_labels_and_says_the_same() -> None:
    """As a Python object's, whose keys need not be words."""
    assert layers(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}) == [0, 1, 2, 3]


def test_a_folder_is_its_config(tmp_path: Path) -> None:
    folder = tmp_path / "My-MoE"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(PLAIN))
    assert read_model(str(folder)) == read_config(PLAIN, "My-MoE").shape


def test_a_yaml_lists_the_layers_or_says_first_and_step(tmp_path: Path) -> None:
    sizes = "layers: 3, experts: 8, top_k: 2, hidden: 64, moe_intermediate: 32"
    for said in ("moe_layers: [1, 3, 5]", "moe_layers: {first: 1, step: 2}"):
        path = tmp_path / "mine.yaml"
        path.write_text(f"{{{sizes}, {said}, hidden_layers: 8}}")
        found = understand(str(path)).shape
        assert (found.moe_layers, found.hidden_layers) == ((1, 3, 5), 8)
    path.write_text(f"{{{sizes}, first_moe_layer: 2}}")  # as earlier versions said it
    assert understand(str(path)).shape.moe_layers == (2, 3, 4)


def test_presets_of_one_shape_are_one() -> None:
    assert len({model.name for model in PRESETS.values()}) == len(PRESETS)
    found = matching(58, 8, 256)
    assert found is not None
    assert found.name == "deepseek-v3"
