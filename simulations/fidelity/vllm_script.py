"""Run by the Python that has vLLM: serves the requests that its standard input tells of, and tells
when their tokens came."""

import json
import sys
import time
from typing import Any

MARK = "@seen "  # before the line that is ours; the engine prints others
WARM_UP = 8  # requests, before any is measured
WRITTEN_S = 6.0  # in which the agent has written what it counted


def main(model: str) -> None:
    from vllm import LLM, SamplingParams

    told: dict[str, Any] = json.loads(sys.stdin.read())
    llm = LLM(
        model, dtype="float32", enforce_eager=True, skip_tokenizer_init=True, max_model_len=1024,
        max_num_seqs=64, enable_prefix_caching=False, tensor_parallel_size=told["ranks"],
        enable_expert_parallel=told["ranks"] > 1,
    )  # fmt: skip
    engine, count = llm.llm_engine, len(told["prompts"])
    first_s, last_s = [0.0] * count, [0.0] * count
    took_s, tokens = list[float](), list[int]()  # of each step

    def add(name: str, prompt: list[int], tokens: int) -> None:
        how = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        engine.add_request(name, {"prompt_token_ids": prompt}, how)

    for at, prompt in enumerate(told["prompts"][:WARM_UP]):
        add(f"warm-{at}", prompt, 16)
    while engine.has_unfinished_requests():
        engine.step()
    begun_s, following, step_s = time.perf_counter(), 0, 0.0
    while following < count or engine.has_unfinished_requests():
        now_s = time.perf_counter() - begun_s
        if not engine.has_unfinished_requests():
            step_s = now_s
        while following < count and told["at_s"][following] <= now_s:
            add(str(following), told["prompts"][following], told["outputs"][following])
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
    time.sleep(WRITTEN_S)
    found = {"first_s": first_s, "last_s": last_s, "took_s": took_s, "tokens": tokens}
    print(f"\n{MARK}{json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
