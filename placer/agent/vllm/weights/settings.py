"""What the layout of a model's weights in memory depends on, and whether it can be shared."""

import json
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.version import __version__

from placer.errors import PlacerError

FORM = "1"  # of weights_file.py, and of what is written there


def settings_of(vllm_config: Any, model_config: Any) -> dict[str, str]:
    """Of an engine, by what users call them. Weights are the same where these and the checkpoint
    are: shapes and constants come from the config, formats of kernels from the rest."""
    parallel = vllm_config.parallel_config
    config = model_config.hf_config.to_dict()
    names = ("_name_or_path", "transformers_version")
    told = json.dumps(
        {k: v for k, v in config.items() if k not in names}, sort_keys=True, default=str
    )
    return {
        "architecture": ", ".join(config.get("architectures") or ["unknown"]),
        "config": sha256(told.encode()).hexdigest()[:12],
        "dtype": str(model_config.dtype).removeprefix("torch."),
        "quantization": str(model_config.quantization),
        "tensor parallel size": str(parallel.tensor_parallel_size),
        "pipeline parallel size": str(parallel.pipeline_parallel_size),
        "data parallel size": str(parallel.data_parallel_size),
        "vLLM": __version__,
        "PyTorch": torch.__version__,
        "CPU kernels": torch.backends.cpu.get_cpu_capability(),
        "placer": f"{version('moe-placer')}, form {FORM}",
    }


def check_shareable(vllm_config: Any, settings: Mapping[str, str]) -> None:
    """Raises PlacerError for what this load format does not do."""
    parallel = vllm_config.parallel_config
    if not current_platform.is_cpu():
        why = (
            f"{current_platform.device_name} memory cannot be mapped: use vLLM's ipc_cache on GPUs"
        )
    elif current_platform.is_zen_cpu():
        why = "zentorch packs experts for each process alone: uninstall zentorch"
    elif split := [name for name in settings if "parallel" in name and settings[name] != "1"]:
        sizes = ", ".join(f"{name} is {settings[name]}" for name in split)
        why = f"{sizes}: use 1, and an engine for each replica"
    elif settings["quantization"] != "None":
        why = f"quantization is {settings['quantization']}: use unquantized weights"
    elif parallel.enable_eplb:
        why = "EPLB moves weights inside each engine: leave out --enable-eplb"
    elif vllm_config.lora_config is not None:
        why = "LoRA wraps layers after they are loaded: leave out --enable-lora"
    else:
        return
    raise PlacerError(f"--load-format placer cannot share these weights, {why}, or another format")


def difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """What differs, both named; empty if nothing does."""
    names = [name for name in ours if ours[name] != theirs.get(name)]
    return ", ".join(f"{name} {ours[name]}, not {theirs.get(name, 'unknown')}" for name in names)
