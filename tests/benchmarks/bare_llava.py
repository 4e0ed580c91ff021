"""A bare transformers loop, what a careful user would write; as a script it loads a model and answers one question.

    python tests/benchmarks/bare_llava.py FOLDER IMAGE TEXT --max-new-tokens 16 --threads 2

Imports nothing of mhe.
"""

from __future__ import annotations

import argparse
import os


def load_bare(folder):
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder, backend="pil")


def bare_loop(model, processor, rows: list[tuple[str, str]], batch_size: int, limit: int) -> list[str]:
    """Answers to rows of (text, path of the image), in order."""
    import PIL.Image
    import torch

    answers = []
    processor.tokenizer.padding_side = "left"
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        images = [PIL.Image.open(path).convert("RGB") for _, path in batch]
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}],
                add_generation_prompt=True,
            )
            for text, _ in batch
        ]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=limit)
        new = output[:, inputs["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("text")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    # As the backend has it, and before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(asked.threads)
    print(*bare_loop(*load_bare(asked.model), [(asked.text, asked.image)], 1, asked.max_new_tokens))


if __name__ == "__main__":
    main()
