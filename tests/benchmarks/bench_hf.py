"""Samples per second of backend `hf` against a bare transformers loop with the same batch size, in one run.

The bare loop decodes and preprocesses each sample's image, renders its prompt, pads left and generates greedily:
what a careful user would write. Both run on the 451 test questions of VQA-RAD, in turn, several times; the ratio is
that of the fastest rounds.

    MHE_TEST_DATA=… python tests/benchmarks/bench_hf.py [--model FOLDER] [--batch-size 8] [--rounds 2]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from mhe import FileSource, Generation, Image, Message, ModelSpec, Request
from mhe.protocols import BackendContext
from mhe_hf import HfBackend, HfOptions, let_waiting_threads_sleep
from mhe_tiny import MODELS

REQUIRED = 0.95
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


def open_backend(model: Path, batch_size: int) -> HfBackend:
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
    return 0 if result["ratio"] >= REQUIRED else 1


def measure(
    folder: Path, requests: list[Request], batch_size: int, limit: int, rounds: int, threads: int
) -> dict[str, float]:
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    torch.set_num_threads(threads)
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    ids = [request.sample_id for request in requests]
    seconds: dict[str, list[float]] = {"bare": [], "mhe": []}
    texts: dict[str, list[str]] = {}
    bare_loop(model, processor, requests[:batch_size], batch_size, limit)
    for _ in range(rounds):
        # A new backend each round: nothing may be kept from the one before.
        backend = open_backend(folder, batch_size)
        started = time.perf_counter()
        responses = {r.sample_id: r.text or "" for r in backend.generate(requests, ids)}
        middle = time.perf_counter()
        texts["bare"] = bare_loop(model, processor, requests, batch_size, limit)
        ended = time.perf_counter()
        texts["mhe"] = [responses[i] for i in ids]
        backend.close()
        seconds["mhe"].append(middle - started)
        seconds["bare"].append(ended - middle)
    rates = {name: len(requests) / min(values) for name, values in seconds.items()}
    same = sum(a == b for a, b in zip(texts["bare"], texts["mhe"], strict=True))
    return {
        "samples": len(requests),
        "batch_size": batch_size,
        "bare_samples_per_second": round(rates["bare"], 2),
        "mhe_samples_per_second": round(rates["mhe"], 2),
        "ratio": round(rates["mhe"] / rates["bare"], 4),
        "required": REQUIRED,
        "same_texts": same,
    }


if __name__ == "__main__":
    sys.exit(main())
