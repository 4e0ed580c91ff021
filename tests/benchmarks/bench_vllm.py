"""Requests per second of backend `vllm` against vLLM's own `LLM.generate`, on one engine, in one run.

Both get the same list: `LLM.generate` after a loop that draws or opens each image and renders each prompt, as a
careful user would write it, which is counted. The engine's caches of prefixes and images are emptied between rounds.
Rounds go by turns, and the ratio is of the fastest of each. At least 0.95 is wanted. Runs where vLLM is installed
(`make test-vllm` sets that up).

    MHE_TEST_DATA=… python tests/benchmarks/bench_vllm.py [--rounds 3] [--model FOLDER]
"""

from __future__ import annotations

import argparse
import os
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

    from mhe_vllm.prompts import PromptMaker

    maker = PromptMaker(backend._open_processor(Path(backend._spec.location)))
    llm = backend._engine.llm
    start = time.perf_counter()
    inputs = [
        {"prompt_token_ids": list(prompt.tokens), "multi_modal_data": {"image": list(prompt.pictures)}}
        for prompt in map(maker.make, requests)
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
    parser.add_argument("--rounds", type=int, default=3)
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
        ours, theirs = [], []
        for _ in range(chosen.rounds + 1):
            empty_caches(backend)
            seconds, texts = run_ours(backend, requests)
            ours.append(seconds)
            empty_caches(backend)
            seconds, expected = run_theirs(backend, requests)
            theirs.append(seconds)
            same = sum(texts[name].strip() == text for name, text in expected.items())
        backend.close()
    # The first round of each warms up.
    best, peer = min(ours[1:]), min(theirs[1:])
    print(f"{len(requests)} requests, {folder.name}: mhe {len(requests) / best:.1f}/s, LLM.generate "
          f"{len(requests) / peer:.1f}/s, ratio {peer / best:.2f} (target {REQUIRED}); same texts {same}")  # fmt: skip
    return 0 if peer / best >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
