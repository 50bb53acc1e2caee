import json
from pathlib import Path

import pytest

from placer.errors import PlacerError
from placer.files.specs import read_model, read_topology
from placer.model import preset


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_topology_file_is_a_preset_with_what_differs(tmp_path: Path) -> None:
    text = """
    preset: h100
    gpus: 16
    gpu: {memory_gb: 96}
    network: {gigabytes_per_s: 25, latency_us: 12}
    """
    found = read_topology(written(tmp_path / "cluster.yaml", text))
    assert (found.name, found.gpus, found.nodes) == ("cluster", 16, 2)
    assert found.gpu.hbm_bytes == 96_000_000_000
    assert found.gpu.hbm_bytes_per_s == 3.35e12
    assert found.network.bytes_per_s == 25e9
    assert found.network.latency_s == pytest.approx(12e-6)
    assert found.local.bytes_per_s == 450e9


def test_a_model_file_holds_the_shape(tmp_path: Path) -> None:
    text = "{layers: 2, experts: 8, top_k: 2, hidden: 64, moe_intermediate: 32, weight_bits: 8}"
    found = read_model(written(tmp_path / "mine.yaml", text))
    assert found.name == "mine"
    assert found.expert_bytes == 3 * 64 * 32


# Keys and values as in the models' public config.json files.
CONFIGS = {
    "mixtral-8x7b": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "num_hidden_layers": 61,
        "first_k_dense_replace": 3,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "quantization_config": {"quant_method": "fp8"},
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "gpt-oss-120b": {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "quantization_config": {"quant_method": "mxfp4"},
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_hugging_face_config_gives_the_presets_shape(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "config.json"
    path.parent.mkdir()
    found = read_model(written(path, json.dumps(CONFIGS[name])))
    want = preset(name)
    for field in (
        "name",
        "layers",
        "experts",
        "top_k",
        "hidden",
        "moe_intermediate",
        "groups",
        "moe_layers",
        "hidden_layers",
        "weight_bits",
    ):
        assert getattr(found, field) == getattr(want, field), field


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (read_topology, "gpus: 8", "preset: field required"),
        (read_topology, "{preset: h100, gpus: eight}", "gpus: input should be a valid integer"),
        (read_topology, "{preset: h100, gpus: 8, color: red}", "color: there is no such key"),
        (read_topology, "{preset: h100, gpus: 8, gpu: {memory_gb: -1}}", "gpu.memory_gb"),
        (read_topology, "{preset: h1000, gpus: 8}", "did you mean 'h100'"),
        (read_topology, "[1, 2]", "holds a list: it must hold keys and values"),
        (read_topology, "{", "is not YAML"),
        (read_topology, "{preset: h100, gpus: true}", "gpus: value error, input should be a num"),
        (read_model, "{layers: 2, weight_bits: true}", "weight_bits is True: it must be a number"),
        (read_model, "{layers: 2}", "experts: field required"),
        (read_model, "{layres: 2}", "unknown model key 'layres'"),
    ],
)
def test_what_is_wrong_is_named_on_one_line(
    tmp_path: Path, reader: object, text: str, message: str
) -> None:
    path = written(tmp_path / "file.yaml", text)
    with pytest.raises(PlacerError) as caught:
        reader(path)  # type: ignore[operator]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_not_taken_for_a_preset(tmp_path: Path) -> None:
    with pytest.raises(PlacerError, match=r"cannot read .*absent.yaml"):
        read_topology(str(tmp_path / "absent.yaml"))
