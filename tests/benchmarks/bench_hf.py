"""Samples per second of backend `hf` against bare transformers loops, in one run.

A bare loop decodes and preprocesses each sample's image, renders its prompt, pads left and generates greedily: what a
careful user would write. With the same batch size it must not be quicker by more than a twentieth. With batch 1, which
is all that harnesses take whose LLaVA refuses larger batches (such as lmms-eval's `llava_hf`; the loop stands for it
and has none of its bookkeeping), the backend with `auto` must be three times as quick. All run on the 451 test
questions of VQA-RAD, in turn, several times; ratios are of the fastest rounds. The backend's fixed cost is what
loading takes beyond the bare loading of model and processor.

    MHE_TEST_DATA=… python tests/benchmarks/bench_hf.py [--model FOLDER] [--batch-size 8] [--rounds 2]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import FileSource, Generation, Image, Message, ModelSpec, Request
from mhe.protocols import BackendContext
from mhe_hf import HfBackend, HfOptions, let_waiting_threads_sleep
from mhe_tiny import MODELS

if TYPE_CHECKING:
    from collections.abc import Callable

REQUIRED = 0.95
REQUIRED_OF_AUTO = 3.0
MOST_FIXED_SECONDS = 1.0
PROMPT = "{question}\nAnswer with a word or a short phrase."


def read_requests(folder: Path, generation: Generation) -> list[Request]:
    rows = json.loads((folder / "VQA_RAD Dataset Public.json").read_text(encoding="utf-8"))
    tests = [row for row in rows if row["phrase_type"].startswith("test")]
    assert len(tests) == 451, len(tests)
    return [
        Request(
            sample_id=str(number),
            messages=(Message("user", PROMPT.replace("{question}", str(row["question"])), images=1),),
            images=(Image(row["image_name"], FileSource(folder / "images" / row["image_name"])),),
            generation=generation,
            seed=number,
            digest=str(number),
        )
        for number, row in enumerate(tests)
    ]


def open_backend(model: Path, batch_size: int | str) -> HfBackend:
    context = BackendContext(offline=True, cache_dir=model, training_samples=list)
    spec = ModelSpec(name="bench", backend="hf", location=str(model))
    backend = HfBackend(spec, HfOptions(dtype="float32", device="cpu", batch_size=batch_size), context)
    backend.load()
    return backend


def bare_loop(model, processor, requests: list[Request], batch_size: int, limit: int) -> list[str]:
    import PIL.Image
    import torch

    answers = []
    processor.tokenizer.padding_side = "left"
    for start in range(0, len(requests), batch_size):
        batch = requests[start : start + batch_size]
        images = [PIL.Image.open(r.images[0].source.path).convert("RGB") for r in batch]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": r.messages[0].text}]}],
                add_generation_prompt=True,
            )
            for r in batch
        ]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=limit)
        new = output[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODELS / "tiny-llava", help="a folder [tiny-llava]")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    asked = parser.parse_args()
    if "MHE_TEST_DATA" not in os.environ:
        print("set MHE_TEST_DATA to the folder that holds vqa_rad/", file=sys.stderr)
        return 2
    generation = Generation(max_new_tokens=asked.max_new_tokens)
    requests = read_requests(Path(os.environ["MHE_TEST_DATA"]) / "vqa_rad", generation)
    # For both sides alike, and before torch is imported.
    let_waiting_threads_sleep()
    result = measure(asked.model, requests, asked.batch_size, asked.max_new_tokens, asked.rounds, asked.threads)
    print(json.dumps(result, indent=2))
    is_met = (
        result["ratio"] >= REQUIRED
        and result["auto_ratio"] >= REQUIRED_OF_AUTO
        and result["fixed_seconds"] <= MOST_FIXED_SECONDS
    )
    return 0 if is_met else 1


def timed(work: Callable[[], list[str]]) -> tuple[float, list[str]]:
    started = time.perf_counter()
    texts = work()
    return time.perf_counter() - started, texts


def answer(backend: HfBackend, requests: list[Request]) -> list[str]:
    ids = [request.sample_id for request in requests]
    responses = {r.sample_id: r.text or "" for r in backend.generate(requests, ids)}
    return [responses[name] for name in ids]


def load_bare(folder: Path):
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder, backend="pil")


def measure_loading(folder: Path, rounds: int) -> float:
    """Seconds that the backend's loading takes beyond the bare one; the quickest of each."""
    bare, own = [], []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        load_bare(folder)
        middle = time.perf_counter()
        backend = open_backend(folder, 1)
        own.append(time.perf_counter() - middle)
        bare.append(middle - started)
        backend.close()
    return min(own) - min(bare)


def measure(
    folder: Path, requests: list[Request], batch_size: int, limit: int, rounds: int, threads: int
) -> dict[str, float]:
    import torch

    torch.set_num_threads(threads)
    model, processor = load_bare(folder)
    bare_loop(model, processor, requests[:batch_size], batch_size, limit)
    seconds: dict[str, list[float]] = {name: [] for name in ("bare", "mhe", "bare_of_1", "auto")}
    texts: dict[str, list[str]] = {}
    found = []
    for _ in range(rounds):
        for name, size in (("mhe", batch_size), ("auto", "auto")):
            # A new backend each round: nothing may be kept from the one before.
            backend = open_backend(folder, size)
            taken, texts[name] = timed(lambda backend=backend: answer(backend, requests))
            seconds[name].append(taken)
            found.append(backend.usage()["batch_size"])
            backend.close()
        for name, size in (("bare", batch_size), ("bare_of_1", 1)):
            taken, texts[name] = timed(lambda size=size: bare_loop(model, processor, requests, size, limit))
            seconds[name].append(taken)
    rates = {name: len(requests) / min(values) for name, values in seconds.items()}
    same = {name: sum(a == b for a, b in zip(texts["bare"], texts[name], strict=True)) for name in ("mhe", "auto")}
    return {
        "samples": len(requests),
        "batch_size": batch_size,
        "bare_samples_per_second": round(rates["bare"], 2),
        "mhe_samples_per_second": round(rates["mhe"], 2),
        "ratio": round(rates["mhe"] / rates["bare"], 4),
        "required": REQUIRED,
        "same_texts": same["mhe"],
        "bare_of_1_samples_per_second": round(rates["bare_of_1"], 2),
        "auto_samples_per_second": round(rates["auto"], 2),
        "auto_batch_size": found[-1],
        "auto_ratio": round(rates["auto"] / rates["bare_of_1"], 4),
        "auto_required": REQUIRED_OF_AUTO,
        "auto_same_texts": same["auto"],
        "fixed_seconds": round(measure_loading(folder, rounds), 3),
        "fixed_allowed": MOST_FIXED_SECONDS,
    }


if __name__ == "__main__":
    sys.exit(main())
