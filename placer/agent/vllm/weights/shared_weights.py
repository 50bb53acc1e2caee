"""vLLM's load format "placer": weights that all engines of one machine map from one HMM.

The first engine that comes to the HMM loads the checkpoint as vLLM does, has it brought into the
form of the CPU's kernels, and writes that down once; then it maps it like all others. A page that
an engine writes becomes its own. Dense layers are packed by oneDNN in every process, so for these
the file has what they are packed from.

A standby has the same layout at the same addresses, of zero pages. ``attach`` maps the weights over
them and packs the dense layers again. It does so before its first step, so that whoever sends it a
request gets no answer from zeros: the request waits for some milliseconds.
"""

import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from vllm.config import set_current_vllm_config
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.model_executor.utils import weights_already_processed
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.worker.worker_base import WorkerWrapperBase

from placer.agent.vllm.weights.checkpoint import change, digested, stamps
from placer.agent.vllm.weights.settings import check_shareable, difference, settings_of
from placer.agent.vllm.weights.weights_file import HEADER_ROOM, Header, Named, Writer, read_header
from placer.clock import SystemClock
from placer.errors import PlacerError
from placer.memory.borrowing import borrow
from placer.memory.device import Run, padded
from placer.memory.memfd import CopyOnWrite
from placer.memory.ranges import seen_at

PACKED_PRIVATELY = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
CPU = torch.device("cpu")
CLOCK = SystemClock()

log = logging.getLogger("vllm.placer")


class SharedWeights:
    """One engine's. Any call is one of the engine's own thread."""

    def __init__(self, descriptor: int, header: Header, vllm_config: Any) -> None:
        self._descriptor, self._header, self._vllm_config = descriptor, header, vllm_config
        self._device = CopyOnWrite()
        self._size = padded(os.fstat(descriptor).st_size, self._device.granularity)
        self._address = self._device.reserve(self._size)
        self._bytes = torch.from_numpy(seen_at(self._address, self._size))
        self._model: Any = None
        self.is_attached = False

    def give(self, model: torch.nn.Module, is_standby: bool) -> torch.nn.Module:
        """Make these the weights of a model, or zeros for now."""
        self._model = model
        # Whether the head is the embedding was settled by who loaded it; zeros would be.
        self._vllm_config.model_config.word_embeddings_untied_by_checkpoint = False
        if is_standby:
            self._bind()
        else:
            self.attach()
        _check_complete(model)
        return model.eval()

    def attach(self) -> None:
        """Have the weights, if they are not here yet."""
        if self.is_attached:
            return
        begun_s = CLOCK.monotonic()
        self._device.map(self._address, Run(self._descriptor, 0, self._size))
        self._bind()
        self.is_attached = True
        took_ms = 1000 * (CLOCK.monotonic() - begun_s)
        size_mb = (self._size - HEADER_ROOM) / 1e6
        log.info("placer: %.1f MB of weights attached in %.0f ms", size_mb, took_ms)

    def _bind(self) -> None:
        """Make the memory the model's tensors, and what is packed privately out of them."""
        modules = dict(self._model.named_modules(remove_duplicate=False))
        for one in self._header.entries:
            part = self._bytes[one.offset : one.offset + one.size]
            tensor = part.view(getattr(torch, one.dtype)).view(one.shape)
            owner, _, leaf = one.name.rpartition(".")
            if one.is_parameter:
                parameter = torch.nn.Parameter(tensor, requires_grad=False)
                modules[owner].register_parameter(leaf, parameter)
            else:
                modules[owner].register_buffer(leaf, tensor)
        config = self._vllm_config.model_config
        with (
            set_current_vllm_config(self._vllm_config),
            set_default_torch_dtype(config.dtype),
            weights_already_processed(),
        ):
            process_weights_after_loading(self._model, config, CPU)


def _check_complete(model: torch.nn.Module) -> None:
    """Raises PlacerError if a tensor has no memory: one that is no parameter and no buffer."""
    for name, module in model.named_modules():
        attributes = {**vars(module), **module._parameters, **module._buffers}
        for leaf, value in attributes.items():
            if isinstance(value, torch.Tensor) and value.is_meta and value.numel():
                raise PlacerError(
                    f"--load-format placer cannot share {name}.{leaf} of this model, which is no "
                    "parameter or buffer: use another format"
                )


def _named(model: torch.nn.Module) -> Iterator[Named]:
    for name, tensor in model.named_parameters(remove_duplicate=False):
        yield Named(name, tensor, True)
    for name, tensor in model.named_buffers(remove_duplicate=False):
        yield Named(name, tensor, False)


def _packed_privately(model: torch.nn.Module) -> Iterator[Named]:
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(getattr(module, "quant_method", None), PACKED_PRIVATELY):
            for leaf, tensor in module.named_parameters(recurse=False):
                yield Named(f"{name}.{leaf}", tensor, True)


@register_model_loader("placer")
class SharedWeightsLoader(BaseModelLoader):  # type: ignore[misc]
    """From the HMM at PLACER_HMM. With {"standby": true} as --model-loader-extra-config the engine
    waits with zero pages."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self._path = Path(os.environ["PLACER_HMM"])
        extra = load_config.model_loader_extra_config or {}
        if not set(extra) <= {"standby"} or extra.get("standby", False) not in (False, True):
            raise PlacerError(
                f"--model-loader-extra-config is {extra}: --load-format placer takes standby, "
                "which is true or false"
            )
        self._is_standby = bool(extra.get("standby"))
        from_disk = dataclasses.replace(
            load_config, load_format="auto", model_loader_extra_config={}
        )
        self._from_disk = DefaultModelLoader(from_disk)

    def download_model(self, model_config: Any) -> None:
        self._from_disk.download_model(model_config)

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        raise PlacerError("shared weights cannot be loaded again in place: start a new engine")

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> torch.nn.Module:
        settings = settings_of(vllm_config, model_config)
        check_shareable(vllm_config, settings)
        _, files, *_ = self._from_disk._prepare_weights(
            model_config.model, None, model_config.revision, True, None
        )
        paths = [Path(file) for file in files]
        model: Any = None

        def fill(descriptor: int) -> None:
            nonlocal model
            before = stamps(paths)
            with set_default_torch_dtype(model_config.dtype), CPU:
                model = self._from_disk.create_model(vllm_config, model_config, prefix)
                self._from_disk.load_weights(model, model_config)
                header = Header(settings, model_config.model, digested(paths, before))
                writer = Writer(descriptor, header)
                writer.add(_packed_privately(model))
                process_weights_after_loading(model, model_config, CPU)
                writer.add(_named(model))
            writer.close()

        descriptor = borrow(self._path, fill)
        header = read_header(descriptor)
        if model is None:
            self._check(header, settings, model_config.model, paths)
            with set_default_torch_dtype(model_config.dtype), torch.device("meta"):
                model = self._from_disk.create_model(vllm_config, model_config, prefix)
        weights = SharedWeights(descriptor, header, vllm_config)
        _attach_before_the_first_step(weights)
        return weights.give(model, self._is_standby)

    def _check(
        self, header: Header, settings: Mapping[str, str], name: str, paths: list[Path]
    ) -> None:
        """Raises PlacerError if these are not the weights that this engine would load."""
        if found := difference(settings, header.settings):
            raise PlacerError(
                f"the HMM at {self._path} has weights of {header.model}, and this engine of {name} "
                f"wants {found}: start another `placer hmm` for it"
            )
        if found := change(paths, header.files):
            raise PlacerError(
                f"{name} {found}, when the HMM at {self._path} got the weights of {header.model}: "
                "start another `placer hmm`, and engines with it"
            )


def _attach_before_the_first_step(weights: SharedWeights) -> None:
    """Of the worker in this process; or when it is told, by vLLM's collective_rpc."""
    execute = WorkerWrapperBase.execute_model

    @wraps(execute)
    def attached(self: Any, *args: Any, **kwargs: Any) -> Any:
        weights.attach()
        return execute(self, *args, **kwargs)

    WorkerWrapperBase.execute_model = attached
    WorkerWrapperBase.placer_attach = lambda self: weights.attach()
