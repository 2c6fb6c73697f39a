"""vLLM in a process of its own: a file of what to ask in, a file of its tokens out.

    python engine.py JOB.json

JOB: {"folder", "setting" or null, "engine": {...}, "requests": [...], "out"}. A request: {"prompt",
"images": [path, ...], "keep" or null}; all are asked at once, or "one by one".
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TOKENS = 12
QUIET = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip


def ask(
    where: Path, folder: Path, requests: list[dict[str, Any]], setting: dict[str, Any] | None,
    **engine: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """What vLLM answers: {"prompt": [ids], "answer": [ids], "error"} per request; with
    disable_log_stats=False also how many "preempted" in all.

    Raises `RuntimeError` with the last of its log where it does not start.
    """
    job, out = where / "job.json", where / "out.json"
    binding = {}
    if engine.get("tensor_parallel_size", 1) > 1:  # vLLM wants a NUMA node a process, or to be told
        cores = sorted(os.sched_getaffinity(0))[: engine["tensor_parallel_size"]]
        binding = {"VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, cores))}
    told = {"folder": str(folder), "setting": setting, "engine": engine, "requests": requests}
    job.write_text(json.dumps(told | {"out": str(out)}))
    out.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, __file__, str(job)], env=os.environ | QUIET | binding, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode or not out.exists():
        raise RuntimeError(done.stderr[-6000:])
    return json.loads(out.read_text())


def main(job: dict[str, Any]) -> None:
    """Start the engine, ask, write."""
    from PIL import Image
    from vllm import LLM, SamplingParams

    engine = {
        "dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 4,
        "limit_mm_per_prompt": {"image": 3}, "disable_log_stats": True,
    } | job["engine"]  # fmt: skip
    if job["setting"] is not None:
        engine["hf_overrides"] = {"tokensieve": job["setting"]}
    llm = LLM(job["folder"], **engine)
    params = SamplingParams(temperature=0, max_tokens=TOKENS, min_tokens=TOKENS)
    prompts = []
    for request in job["requests"]:
        images = [Image.open(path).convert("RGB") for path in request["images"]]
        prompt = {"prompt": request["prompt"], "multi_modal_data": {"image": images}}
        if request.get("keep") is not None:
            prompt["mm_processor_kwargs"] = {"tokensieve": {"keep": request["keep"]}}
        prompts.append(prompt)
    apart = any(request.get("alone") for request in job["requests"])
    done = []
    for batch in [[prompt] for prompt in prompts] if apart else [prompts]:
        try:
            done += [
                {"prompt": list(out.prompt_token_ids), "answer": list(out.outputs[0].token_ids)}
                for out in llm.generate(batch, params, use_tqdm=False)
            ]
        except ValueError as error:
            done += [{"error": str(error)} for _ in batch]
    if not engine["disable_log_stats"]:
        told = [one.value for one in llm.get_metrics() if one.name == "vllm:num_preemptions"]
        done = [{**one, "preempted": sum(told)} for one in done]
    Path(job["out"]).write_text(json.dumps(done))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
