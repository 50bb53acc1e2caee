"""A real vLLM engine in a process of its own, driven line by line, so that it may crash alone."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "tiny_moe" / "model"
MARK = "@placer "  # before the lines that are ours; the engine prints others
START_S = 300


@dataclass(frozen=True)
class Generation:
    """tokens: [requests] those generated; pause_s: the longest between two of one request
    seconds, worked_s: by the clock, and of all the engine's processors
    """

    tokens: list[list[int]]
    pause_s: float
    seconds: float
    worked_s: float


class Engine:
    """``width`` worker processes with expert parallelism; EPLB where there are redundant slots."""

    def __init__(
        self,
        folder: Path,
        agent: str | None,
        width: int = 1,
        redundant: int = 0,
        every: int = 16,
        hmm: Path | None = None,
        is_one_process: bool = False,
        **more: Any,
    ) -> None:
        """hmm: whose weights it shares; is_one_process: which starts sooner; more: of vllm.LLM"""
        options: dict[str, Any] = {"model": str(MODEL), **more}
        if width > 1:
            options |= {"tensor_parallel_size": width, "enable_expert_parallel": True}
        if redundant:
            options |= {
                "enable_eplb": True,
                "eplb_config": {
                    "window_size": 8,
                    "step_interval": every,
                    "num_redundant_experts": redundant,
                    "use_async": False,
                    "communicator": "torch_gloo",
                },
            }
        env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, range(width))),
            "PYTHONPATH": str(ROOT),
        }
        env.pop("PLACER_AGENT", None)
        env.pop("PLACER_HMM", None)
        if agent is not None:
            env["PLACER_AGENT"] = agent
        if is_one_process:
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
            options["distributed_executor_backend"] = "uni"
        if hmm is not None:
            env["PLACER_HMM"] = str(hmm)
            options["load_format"] = "placer"
        self.log = folder / "engine.log"
        self._process = subprocess.Popen(
            [sys.executable, __file__, json.dumps(options)],
            env=env,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._log = self.log.open("w")
        self._answer()

    def generate(self, prompts: list[list[int]], tokens: int) -> Generation:
        """Greedy, all at once."""
        return Generation(**self._ask(["generate", prompts, tokens]))

    def begin(self, prompts: list[list[int]], tokens: int) -> None:
        """The same, to be waited for with ``finish``."""
        self._say(["generate", prompts, tokens])

    def finish(self) -> Generation:
        return Generation(**self._answer())

    def call(self, method: str, *args: Any) -> Any:
        """[ranks] what a method of Extension answers on each."""
        return self._ask(["call", method, list(args)])

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._process.stdout, self._log, suppress(BrokenPipeError):
            self._process.stdin.close()
            self._log.writelines(self._process.stdout)
        self._process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, command: list[Any]) -> Any:
        self._say(command)
        return self._answer()

    def _say(self, command: list[Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
            self._log.write(line)
            self._log.flush()
        raise RuntimeError(f"the engine ended:\n{self.log.read_text()[-4000:]}")


class Extension:
    """What tests ask of a worker."""

    def placer_map(self) -> list[list[int]]:
        """The engine's own map, [layers][slots]."""
        (state,) = self.model_runner.eplb_state.model_states.values()  # type: ignore[attr-defined]
        table: list[list[int]] = state.physical_to_logical_map.tolist()
        return table

    def placer_pid(self) -> int:
        return os.getpid()

    def placer_count_loads(self) -> None:
        """Count activations by physical expert from now on."""
        import torch
        from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

        eplb = self.model_runner.eplb_state  # type: ignore[attr-defined]
        (state,) = eplb.model_states.values()
        self._loads: Any = torch.zeros(state.physical_to_logical_map.shape, dtype=torch.int64)
        layer_of = {id(layer.router): at for at, layer in enumerate(state.model.moe_layers)}
        mapped, loads = BaseRouter._apply_eplb_mapping, self._loads

        def counted(router: Any, topk_ids: Any) -> Any:
            physical = mapped(router, topk_ids)
            loads[layer_of[id(router)]] += torch.bincount(
                physical.flatten().long(), minlength=loads.shape[1]
            )
            return physical

        BaseRouter._apply_eplb_mapping = counted

    def placer_rank_loads(self) -> list[list[int]]:
        """[layers][ranks] of what was counted."""
        ranks = self.model_runner.placer.worker.ep_size  # type: ignore[attr-defined]
        by_rank: list[list[int]] = self._loads.reshape(len(self._loads), ranks, -1).sum(2).tolist()
        return by_rank

    def placer_switch(self, on: bool) -> None:
        """Take the agent's hooks out of the model and its steps, or put them back."""
        runner = self.model_runner  # type: ignore[attr-defined]
        if runner.placer is not None:
            self._agent = runner.placer
            self._captures = {router: router.capture_fn for router in self._routers()}
        runner.placer = self._agent if on else None
        for router, capture in self._captures.items():
            router.set_capture_fn(capture if on else None)

    def _routers(self) -> list[Any]:
        from vllm.model_executor.layers.fused_moe.layer import MoERunner

        modules = self.model_runner.model.modules()  # type: ignore[attr-defined]
        return [module.router for module in modules if isinstance(module, MoERunner)]

    def placer_offer(self, rank: int, epoch: int, path: str) -> str:
        """Let one rank alone know of a plan."""
        from placer.files.plans import read_plan

        applying = self.model_runner.placer.applying  # type: ignore[attr-defined]
        if applying.worker.ep_rank != rank:
            return ""
        refused: str = applying.offer(epoch, read_plan(Path(path)))
        return refused


def main(options: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams

    usual = {
        "dtype": "float32",
        "enforce_eager": True,
        "skip_tokenizer_init": True,
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "enable_prefix_caching": False,
        "worker_extension_cls": "tests.vllm.engines.Extension",
    }
    llm = LLM(**{**usual, **options})

    def generate(prompts: list[list[int]], count: int) -> dict[str, Any]:
        greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        engine, begun, worked_s = llm.llm_engine, time.perf_counter(), _worked_s()
        tokens: dict[str, list[int]] = {}
        seen: dict[str, float] = {}
        pause_s = 0.0
        for at, prompt in enumerate(prompts):
            tokens[str(at)] = []
            engine.add_request(str(at), {"prompt_token_ids": prompt}, greedy)
        while engine.has_unfinished_requests():
            for output in engine.step():
                now = time.perf_counter()
                pause_s = max(pause_s, now - seen.get(output.request_id, now))
                seen[output.request_id] = now
                tokens[output.request_id] = list(output.outputs[0].token_ids)
        return {
            "tokens": list(tokens.values()),
            "pause_s": pause_s,
            "seconds": time.perf_counter() - begun,
            "worked_s": _worked_s() - worked_s,
        }

    print(f"\n{MARK}{{}}", flush=True)
    for line in sys.stdin:
        what, *args = json.loads(line)
        if what == "generate":
            answer: Any = generate(*args)
        else:
            answer = llm.collective_rpc(args[0], args=tuple(args[1]))
        print(f"\n{MARK}{json.dumps(answer)}", flush=True)


def _worked_s() -> float:
    """Processor time of this process and those that it began, to the microsecond."""
    ours, found = {os.getpid()}, 0
    for path in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        with suppress(OSError):  # it ended meanwhile
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if int(path.name) in ours or parent in ours:
                ours.add(int(path.name))
                threads = path.glob("task/*/schedstat")
                found += sum(int(thread.read_text().split()[0]) for thread in threads)
    return found / 1e9


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
