"""A rank of vLLM, run by the Python that has it: serves what each line of its standard input tells
of, and tells when tokens came, and of each step what was in it and how long it waited for others.

vLLM's external launcher: every rank schedules for itself, so that no process but the ranks needs a
core, and all take up the same requests in a step, which the first says.
"""

import json
import os
import sys
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

MARK = "@seen "  # before the lines that are ours; the engine prints others
KV_BYTES = 2**27  # of a rank: several engines share the memory
WARM_UP = 8  # requests, before any is measured


def main(model: str, ranks: int, rank: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if ranks <= len(cores):
        os.sched_setaffinity(0, {cores[rank]})
    from vllm import LLM

    _name_shared_memory()
    llm = LLM(
        model, dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_model_len=1024,
        max_num_seqs=64, enable_prefix_caching=False, kv_cache_memory_bytes=KV_BYTES,
        tensor_parallel_size=ranks, enable_expert_parallel=ranks > 1,
        distributed_executor_backend="external_launcher",
    )  # fmt: skip
    engine = Watched(llm.llm_engine, rank)
    prompts = [list(range(20))] * WARM_UP
    engine.serve({"prompts": prompts, "outputs": [16] * WARM_UP, "at_s": [0.0] * WARM_UP})
    tell({})
    for line in sys.stdin:
        tell(engine.serve(json.loads(line)))


def tell(found: dict[str, Any]) -> None:
    print(f"\n{MARK}{json.dumps(found)}", flush=True)


def _name_shared_memory() -> None:
    """vLLM names it by the address at which ranks meet, which is no file's name here, and the same
    for all engines."""
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    named = _CPUSHMDistributed.make_group_name
    port = os.environ["MASTER_PORT"]
    _CPUSHMDistributed.make_group_name = staticmethod(lambda of: named(of).replace("//", port))


class Watched:
    """waited_s: of the step that runs, in collectives; experts: that its tokens chose, by layer"""

    def __init__(self, engine: Any, rank: int) -> None:
        import torch
        from vllm.distributed.parallel_state import get_tp_group
        from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

        self._engine, self._rank = engine, rank
        self.waited_s, self.experts = 0.0, list[Any]()
        group = get_tp_group()
        reduce = group.all_reduce

        def agreed(count: int) -> int:
            if group.world_size > 1:
                return int(reduce(torch.tensor([float(count if rank == 0 else 0)])))
            return count

        self._agreed = agreed
        group.all_reduce, group.all_gather = map(self._timed, (reduce, group.all_gather))
        apply = CPUUnquantizedExperts.apply

        def seen(of: Any, **tensors: Any) -> None:
            self.experts.append(tensors["topk_ids"].clone())
            apply(of, **tensors)

        CPUUnquantizedExperts.apply = seen

    def _timed(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*some: Any, **more: Any) -> Any:
            begun_s = time.perf_counter()
            found = wait(*some, **more)
            self.waited_s += time.perf_counter() - begun_s
            return found

        return timed

    def serve(self, told: dict[str, Any]) -> dict[str, Any]:
        engine, at_s = self._engine, told["at_s"]
        count = len(at_s)
        first_s, last_s = [0.0] * count, [0.0] * count
        took_s, tokens, begun, waited_s, experts = [], [], [], [], []  # of each step
        begun_s, following, step_s = time.perf_counter(), 0, 0.0
        while following < count or engine.has_unfinished_requests():
            now_s = time.perf_counter() - begun_s
            if not engine.has_unfinished_requests():
                if self._rank == 0 and now_s < at_s[following]:
                    time.sleep(at_s[following] - now_s)
                    continue
                step_s = now_s
            come = self._agreed(bisect_right(at_s, now_s))
            for at in range(following, come):
                self._add(at, told)
            following = come
            self.waited_s = 0.0
            self.experts.clear()
            outputs = engine.step()
            now_s, computed, new = time.perf_counter() - begun_s, 0, 0
            for output in outputs:
                last_s[one := int(output.request_id)] = now_s
                is_first = len(output.outputs[0].token_ids) == 1
                computed += len(told["prompts"][one]) if is_first else 1
                if is_first:
                    first_s[one] = now_s
                    new += 1
            if computed:
                took_s.append(now_s - step_s)
                tokens.append(computed)
                begun.append(new)
                waited_s.append(self.waited_s)
                experts.append(list(self.experts))
                step_s = now_s
        return {
            "first_s": first_s, "last_s": last_s, "took_s": took_s, "tokens": tokens,
            "waited_s": waited_s, "begun": begun,
            "experts": [[of.flatten().tolist() for of in step] for step in experts],
        }  # fmt: skip

    def _add(self, at: int, told: dict[str, Any]) -> None:
        from vllm import SamplingParams

        how = SamplingParams(
            temperature=0, max_tokens=told["outputs"][at], ignore_eos=True, detokenize=False
        )
        self._engine.add_request(str(at), {"prompt_token_ids": told["prompts"][at]}, how)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
