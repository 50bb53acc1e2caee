"""Run by the Python that has vLLM: serves what each line of its standard input tells of, and tells
when its tokens came."""

import json
import sys
import time
from typing import Any

MARK = "@seen "  # before the lines that are ours; the engine prints others
KV_BYTES = 2**27  # of a rank: several engines share the memory
WARM_UP = 8  # requests, before any is measured
WRITTEN_S = 6.0  # in which the agent has written what it counted


def main(model: str, ranks: int) -> None:
    from vllm import LLM

    llm = LLM(
        model, dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_model_len=1024,
        max_num_seqs=64, enable_prefix_caching=False, kv_cache_memory_bytes=KV_BYTES,
        tensor_parallel_size=ranks, enable_expert_parallel=ranks > 1,
        distributed_executor_backend="mp",
    )  # fmt: skip
    prompts = [list(range(20))] * WARM_UP
    serve(llm.llm_engine, {"prompts": prompts, "outputs": [16] * WARM_UP, "at_s": [0.0] * WARM_UP})
    tell({})
    for line in sys.stdin:
        tell(serve(llm.llm_engine, json.loads(line)))
    time.sleep(WRITTEN_S)


def tell(found: dict[str, Any]) -> None:
    print(f"\n{MARK}{json.dumps(found)}", flush=True)


def serve(engine: Any, told: dict[str, Any]) -> dict[str, Any]:
    from vllm import SamplingParams

    count = len(told["prompts"])
    first_s, last_s = [0.0] * count, [0.0] * count
    took_s, tokens = list[float](), list[int]()  # of each step

    def add(at: int) -> None:
        how = SamplingParams(
            temperature=0, max_tokens=told["outputs"][at], ignore_eos=True, detokenize=False
        )
        engine.add_request(str(at), {"prompt_token_ids": told["prompts"][at]}, how)

    begun_s, following, step_s = time.perf_counter(), 0, 0.0
    while following < count or engine.has_unfinished_requests():
        now_s = time.perf_counter() - begun_s
        if not engine.has_unfinished_requests():
            step_s = now_s
        while following < count and told["at_s"][following] <= now_s:
            add(following)
            following += 1
        if not engine.has_unfinished_requests():
            time.sleep(max(told["at_s"][following] - now_s, 0.0))
            continue
        outputs = engine.step()
        now_s, computed = time.perf_counter() - begun_s, 0
        for output in outputs:
            last_s[one := int(output.request_id)] = now_s
            is_first = len(output.outputs[0].token_ids) == 1
            computed += len(told["prompts"][one]) if is_first else 1
            if is_first:
                first_s[one] = now_s
        if computed:
            took_s.append(now_s - step_s)
            tokens.append(computed)
            step_s = now_s
    return {"first_s": first_s, "last_s": last_s, "took_s": took_s, "tokens": tokens}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
