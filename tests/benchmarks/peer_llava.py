"""lmms-eval's own `llava_hf` under a stopwatch: run with the Python of an environment that has lmms-eval, by bench_hf.

It loads the model class that `lmms_eval --model llava_hf` loads, says so in a line of JSON, and waits. Each line that
it then reads, a number, has it answer so many requests once through the class's own `generate_until`, and write the
seconds on the clock, those of its threads on the processor, and the answers. Timed is that call alone: images are
opened, prompts rendered, and answers generated and decoded within it.

    python tests/benchmarks/peer_llava.py FOLDER REQUESTS.json --max-new-tokens 16 --threads 2

REQUESTS.json is a list of `{"text": …, "image": PATH}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

TASK, SPLIT = "bench", "test"


def messages_of(row):
    """As a task of lmms-eval gives them; the picture is opened when it is asked for, as its data sets do."""
    import PIL.Image

    picture = PIL.Image.open(row["image"]).convert("RGB")
    return [
        {
            "role": "user",
            "content": [{"type": "image", "url": picture}, {"type": "text", "text": row["text"]}],
        }
    ]


def requests_of(rows, limit):
    from lmms_eval.api.instance import Instance

    def settings():
        # The class writes into what it is given.
        return {"max_new_tokens": limit, "temperature": 0, "do_sample": False, "num_beams": 1}

    return [
        Instance(
            request_type="generate_until",
            arguments=(row["text"], messages_of, settings(), number, TASK, SPLIT),
            idx=0,
            metadata={"task": TASK, "doc_id": number, "repeats": 1},
        )
        for number, row in enumerate(rows)
    ]


def text_of(answer) -> str:
    return (answer if isinstance(answer, str) else answer.text).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("requests", type=Path)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    # What libraries print must not mix with the lines that are read.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(line):
        print(json.dumps(line), file=channel, flush=True)

    import torch
    from lmms_eval.models import get_model

    torch.set_num_threads(asked.threads)
    model = get_model("llava_hf")(
        pretrained=str(asked.model),
        device="cpu",
        # Its default, an empty text, is one that transformers 5 refuses.
        device_map="cpu",
        dtype="float32",
        batch_size=1,
    )
    rows = json.loads(asked.requests.read_text(encoding="utf-8"))
    model.task_dict[TASK] = {SPLIT: rows}
    versions = ", ".join(f"{name} {version(name)}" for name in ("lmms-eval", "transformers", "torch"))
    pictures = type(model._image_processor.image_processor).__name__
    say({"versions": versions, "class": f"{type(model).__module__}.{type(model).__name__}", "pictures": pictures})
    for line in sys.stdin:
        requests = requests_of(rows[: int(line)], asked.max_new_tokens)
        start, worked = time.perf_counter(), time.process_time()
        answers = model.generate_until(requests)
        seconds, worked = time.perf_counter() - start, time.process_time() - worked
        say({"seconds": seconds, "processor_seconds": worked, "texts": [text_of(answer) for answer in answers]})


if __name__ == "__main__":
    main()
