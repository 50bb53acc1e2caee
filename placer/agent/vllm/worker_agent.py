"""The agent of one worker of vLLM's: what it is, records and applies."""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from vllm.distributed.eplb.eplb_state import EplbState
from vllm.distributed.parallel_state import get_ep_group, get_eplb_group, get_tp_group

from placer.agent.reporter import Reporter
from placer.agent.sinks import OpenSink
from placer.agent.vllm.applying import Applying
from placer.agent.vllm.batches import batch_of, capture_own
from placer.agent.vllm.counters import Counters
from placer.agent.vllm.experts import Capture, ExpertLayer, expert_layers, kinds, unfused
from placer.agent.vllm.process_group import GroupRanks
from placer.agent.vllm.recorder import StepRecorder
from placer.agent.vllm.shutter import Shutter
from placer.clock import SystemClock
from placer.errors import ModelError, PlacerError
from placer.files.configs import DENSE, read_config
from placer.files.vocabularies import FILE, vocabulary_of
from placer.model import ModelShape
from placer.worker import Worker

CLOCK = SystemClock()
log = logging.getLogger("vllm.placer")


class WorkerAgent:
    """From when the model is loaded. unseen: why its experts are not, if that is so"""

    def __init__(
        self,
        runner: Any,
        worker: Worker,
        layers: Sequence[ExpertLayer],
        open_sink: OpenSink,
        record: str,
        unseen: str,
    ) -> None:
        config = runner.vllm_config
        eplb = runner.eplb_state
        self.worker, self._config = worker, config
        self.applying: Applying | None = None
        self.recorder: StepRecorder | None = None
        self._shutter: Shutter | None = None
        self._lost_rows = False  # whether a layer's choices came in an order that is not known
        if worker.records:
            self.recorder = self._record(config, layers, runner.device, record)
        sink = open_sink(worker, _shape(config, worker))
        if eplb is not None:  # last: a rank that cannot start must not announce itself
            self._ranks = GroupRanks(get_eplb_group().cpu_group)
            self._state = _state(eplb, config)
            self.applying = Applying(self._look, eplb.policy, CLOCK)
            self.attach(eplb)
        self.reporter = Reporter(worker, sink, self.recorder, self.applying, CLOCK, unseen)
        # Ends before the process does, unlike atexit in a process that multiprocessing began.
        Finalize(None, self.reporter.close, exitpriority=100)
        self.reporter.start()

    def attach(self, eplb: Any) -> None:
        """To an EplbState that is new: elastic EP may build one."""
        assert self.applying is not None
        if eplb.policy is not self.applying:
            self.applying.otherwise, eplb.policy = eplb.policy, self.applying
            self._state = _state(eplb, self._config)
            EplbState.placer = self

    def step(self, runner: Any, scheduled: Any, begun_s: float) -> None:
        """After each step."""
        if self._lost_rows and self.recorder is not None:
            log.warning("placer: records no more: it cannot tell this rank's tokens from others'")
            self.recorder = self.reporter.recorder = None
        if self.recorder is not None and (batch := batch_of(runner, scheduled)) is not None:
            if self._shutter is None or self._shutter.after_step(CLOCK.monotonic()):
                self.recorder.observe(batch, begun_s)
            else:
                self.recorder.skip(batch, begun_s)
            self.reporter.tick()
        if self.applying is not None:
            self.applying.look()
            self.applying.verify(lambda: self._state.physical_to_logical_map.cpu().numpy())

    def _record(
        self, config: Any, layers: Sequence[ExpertLayer], device: torch.device, record: str
    ) -> StepRecorder:
        worker, most = self.worker, config.scheduler_config.max_num_batched_tokens
        counters = Counters(worker.layers, worker.experts, worker.top_k, most, device)
        parallel = config.parallel_config
        captures: list[Capture] = [partial(counters.capture, at) for at in range(len(layers))]
        if parallel.data_parallel_size > 1 or parallel.enable_elastic_ep:
            captures = [partial(capture_own, self._lose, one, parallel) for one in captures]
        if record == "sampled":
            self._shutter = Shutter(layers, captures)
        else:
            for layer, capture in zip(layers, captures, strict=True):
                layer.bind(capture)
        return StepRecorder(counters, CLOCK)

    def _lose(self, is_lost: bool) -> None:
        self._lost_rows = is_lost

    def _look(self) -> tuple[GroupRanks, Worker]:
        """The group as it is now, and what the worker is in it."""
        group = get_eplb_group().cpu_group
        if group is not self._ranks.group:
            self._ranks = GroupRanks(group)
        ranks, slots = self._ranks, int(self._state.physical_to_logical_map.shape[1])
        return ranks, replace(self.worker, slots=slots, ep_rank=ranks.rank, ep_size=ranks.size)


def start(runner: Any, open_sink: OpenSink, record: str) -> WorkerAgent | None:
    """The agent of a model that was just loaded; none if it has no experts."""
    config, layers = runner.vllm_config, expert_layers(runner.model)
    unseen = next((f"layer {one.id}: {one.unseen}" for one in layers if one.unseen), "")
    if layers and layers[0].experts:
        first = layers[0]
        shape = len(layers), first.experts, first.top_k, first.slots
    else:
        model = _model(config)
        if isinstance(model, str):
            log.log(logging.INFO if model == DENSE else logging.WARNING, "placer: %s", model)
            return None
        shape = model.layers, model.experts, model.top_k, model.experts
        what = ", ".join(kinds(runner.model)) or "experts of no name"
        unseen = unseen or (
            f"the model has {model.experts} experts in {model.layers} layers, of a kind that the "
            f"agent does not see ({what}): start vLLM with another --moe-backend, or a version "
            "whose layers have a capture_fn"
        )
    if (eplb := runner.eplb_state) is not None:  # it knows of slots, whatever the kind
        shape = *shape[:3], int(_state(eplb, config).physical_to_logical_map.shape[1])
    tp_rank = get_tp_group().rank_in_group
    if tp_rank or record == "never":
        unseen = ""
    reason = _cannot_record(config, layers, tp_rank, record) or unseen
    worker = _worker(config, shape, tp_rank, can_apply=eplb is not None, records=not reason)
    agent = WorkerAgent(runner, worker, layers, open_sink, record, unseen)
    _say(worker, reason, record, config.parallel_config.enable_elastic_ep)
    return agent


def _state(eplb: Any, config: Any) -> Any:
    """Of the model that serves; another may draft."""
    return eplb.model_states[config.model_config.compute_hash()]


def _worker(
    config: Any, shape: tuple[int, int, int, int], tp_rank: int, can_apply: bool, records: bool
) -> Worker:
    parallel = config.parallel_config
    layers, experts, top_k, slots = shape
    has_ranks = parallel.enable_expert_parallel
    return Worker(
        name=f"worker-{parallel.data_parallel_rank * parallel.tensor_parallel_size + tp_rank}",
        model=str(config.model_config.model),
        layers=layers,
        experts=experts,
        top_k=top_k,
        slots=slots,
        ep_rank=get_ep_group().rank_in_group if has_ranks else 0,
        ep_size=get_ep_group().world_size if has_ranks else 1,
        can_apply=can_apply,
        records=records,
        can_resize=parallel.enable_elastic_ep and bool(os.environ.get("PLACER_API", "").strip()),
        tp_size=parallel.tensor_parallel_size,
        most_ranks=parallel.elastic_ep_max_dp_size * parallel.tensor_parallel_size,
        vocabulary=_vocabulary(config.model_config),
    )


def _vocabulary(model: Any) -> str:
    """Of the tokenizer's file, as far as it is on this host."""
    try:
        place: Any = Path(str(model.tokenizer)) / FILE
        if not place.is_file():
            revision = model.tokenizer_revision
            place = try_to_load_from_cache(str(model.tokenizer), FILE, revision=revision)
        return vocabulary_of(Path(place)) if isinstance(place, str | Path) else ""
    except (PlacerError, ValueError, OSError, AttributeError):  # no repository's, or none at all
        return ""


def _cannot_record(config: Any, layers: Sequence[ExpertLayer], tp_rank: int, record: str) -> str:
    """Why this worker does not count what it could; empty if it does."""
    if record == "never":
        return "PLACER_RECORD is never"
    if tp_rank:
        return "tensor-parallel rank 0 sees the same tokens"
    if config.parallel_config.pipeline_parallel_size > 1:
        return "pipeline stages see only some of the layers"
    if any(layer.is_taken for layer in layers):
        return "vLLM's own capture of routed experts is on"
    if any(layer.is_split for layer in layers):
        return "each tensor-parallel rank routes other tokens"
    return ""


def _say(worker: Worker, reason: str, record: str, elastic: bool) -> None:
    does = [f"records nothing ({reason})"]
    if not reason:
        does = ["records"] if record == "always" else ["records for a tenth of the time"]
    does.append(
        "applies plans; the engine no longer rebalances by itself once all ranks have agents"
        if worker.can_apply
        else "applies nothing (start with --enable-eplb for that)"
    )
    log.info("placer: %s %s", worker.name, ", ".join(does))
    if elastic and not worker.can_resize:
        log.info("placer: elastic EP is on: with PLACER_API, too, placer can change the width")
    if not reason and record == "always" and (what := unfused()):
        log.warning(
            "placer: recording turns off %s, and they take longer: PLACER_RECORD=sampled leaves it "
            "on but for a tenth of the time, and in CUDA graphs; PLACER_RECORD=never always",
            what,
        )


def _model(config: Any) -> ModelShape | str:
    """The model's sizes, or why its config does not say them."""
    name = Path(str(config.model_config.model)).name
    try:
        return read_config(config.model_config.hf_config.to_dict(), name).shape
    except ModelError as error:
        return str(error)


def _shape(config: Any, worker: Worker) -> ModelShape | None:
    """The same, if they are what the worker sees."""
    shape = _model(config)
    if isinstance(shape, str):
        log.warning("placer: the model's sizes are not known: %s", shape)
        return None
    seen = worker.layers, worker.experts, worker.top_k
    return shape if (shape.layers, shape.experts, shape.top_k) == seen else None
