"""Requests per second of backend `vllm` against vLLM's own `LLM.generate`, on one engine, in one run.

Both get the same list: `LLM.generate` after a loop that draws or opens each image and renders each prompt, as a
careful user would write it, which is counted. The engine's caches of prefixes and images are emptied between rounds.
Rounds go by turns, each side first in every second one, and the ratio is the median of the rounds' own, since a busy
machine slows both. At least 0.95 is wanted. Runs where vLLM is installed (`make test-vllm` sets that up).

    python tests/benchmarks/bench_vllm.py [--rounds 5] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

REQUIRED = 0.95
MANY = 400


def requests_of(many: int) -> list:
    from mhe import Generation, open_catalog, read_samples
    from mhe.prompting import build_request

    task = open_catalog().task("phantom-vqa")
    samples = read_samples(task.name, task.default_split, limit=many)
    settings = Generation(max_new_tokens=16, temperature=0.0)
    return [build_request(task, sample, settings, 0) for sample in samples]


def run_ours(backend, requests) -> tuple[float, dict[str, str]]:
    start = time.perf_counter()
    texts = {r.sample_id: r.text for r in backend.generate(requests, {request.sample_id for request in requests})}
    return time.perf_counter() - start, texts


def run_theirs(backend, requests) -> tuple[float, dict[str, str]]:
    from vllm import SamplingParams

    from mhe import open_image
    from mhe_hf import render_prompt

    processor = backend._open_processor(Path(backend._spec.location))
    llm = backend._engine.llm
    start = time.perf_counter()
    inputs = [
        {
            "prompt_token_ids": processor.tokenizer(render_prompt(processor, request.messages))["input_ids"],
            "multi_modal_data": {"image": [open_image(image) for image in request.images]},
        }
        for request in requests
    ]
    outputs = llm.generate(inputs, SamplingParams(temperature=0.0, max_tokens=16), use_tqdm=False)
    seconds = time.perf_counter() - start
    return seconds, {r.sample_id: o.outputs[0].text.strip() for r, o in zip(requests, outputs, strict=True)}


def empty_caches(backend) -> None:
    llm = backend._engine.llm
    llm.reset_prefix_cache()
    llm.llm_engine.reset_mm_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    chosen = parser.parse_args()
    if find_spec("vllm") is None:
        print("skipped: vLLM is not installed here; make test-vllm sets up an environment with it")
        return 0
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from mhe import BackendContext, ModelSpec, open_catalog
    from mhe_tiny import MODELS

    folder = chosen.model or MODELS / "tiny-llava"
    factory = open_catalog().backend("vllm")
    with tempfile.TemporaryDirectory() as cache:
        context = BackendContext(offline=True, cache_dir=Path(cache), training_samples=list)
        spec = ModelSpec(name=folder.name, backend="vllm", location=str(folder))
        backend = factory(spec, factory.Options(dtype="float32"), context)
        backend.load()
        requests = requests_of(MANY)
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        processor: dict[str, list[float]] = {"ours": [], "theirs": []}
        texts: dict[str, dict[str, str]] = {}
        sides = [("ours", run_ours), ("theirs", run_theirs)]
        for _ in range(chosen.rounds + 1):
            for name, run in sides:
                empty_caches(backend)
                worked = time.process_time()
                taken, texts[name] = run(backend, requests)
                seconds[name].append(taken)
                processor[name].append(time.process_time() - worked)
            sides.reverse()
        backend.close()
    # The first round of each warms up.
    ours, theirs = seconds["ours"][1:], seconds["theirs"][1:]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ratios)
    same = sum(texts["ours"][name].strip() == text for name, text in texts["theirs"].items())
    speeds = [len(requests) / statistics.median(values) for values in (ours, theirs)]
    print(
        f"{len(requests)} requests, {folder.name}: mhe {speeds[0]:.1f}/s, LLM.generate {speeds[1]:.1f}/s, "
        f"ratio {ratio:.2f} (target {REQUIRED}; rounds {', '.join(f'{r:.2f}' for r in ratios)}); "
        f"same texts {same}"
    )
    # Where other work takes the cores, these change least.
    worked = [statistics.median(processor[name][1:]) for name in ("ours", "theirs")]
    told = f"on the processor: mhe {worked[0]:.2f} s, LLM.generate {worked[1]:.2f} s"
    print(f"{told}, ratio {worked[1] / worked[0]:.2f}")
    return 0 if ratio >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
