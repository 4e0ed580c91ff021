"""Scores of a small model by question type, beside the majority answer: `python -m mhe_tiny.report FOLDER`.

Writes `README.md` into the model's folder: the command that made it, the digest of its weights and what it scores on
the test splits of the phantom tasks. A plain loop over transformers, so that it also shows that no code of ours is
needed to use the model.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import Sample, file_digest, open_image, read_samples
from mhe_tiny.lessons import CAPTIONS, QUESTIONS, read_prompts
from mhe_tiny.turns import render_turn

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor


COMMAND = "python -m mhe_tiny.train tiny-llava --seed 0 --out FOLDER"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    question_type: str
    answer_type: str
    questions: int
    right: float
    """Share of answers equal to the reference."""
    majority: float
    """Share of the most frequent reference among these questions: what a constant answer gets at best."""

    def as_markdown(self) -> str:
        """Return the line."""
        cells = (self.question_type, self.answer_type, self.questions, f"{self.right:.3f}", f"{self.majority:.3f}")
        return f"| {' | '.join(map(str, cells))} |"


def load_model(folder: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return model and processor as transformers alone loads them."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(folder)
    return model.eval(), AutoProcessor.from_pretrained(folder, backend="pil")


def answer_samples(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    samples: Sequence[Sample],
    prompt: str,
    *,
    new_tokens: int = 8,
    batch_size: int = 64,
) -> list[str]:
    """Return the greedy answer to each sample."""
    import torch

    answers: list[str] = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        texts = [render_turn(processor, prompt.replace("{question}", sample.question or "")) for sample in part]
        pictures = [open_image(sample.images[0]) for sample in part]
        inputs = processor(images=pictures, text=texts, return_tensors="pt", padding=True)
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)  # type: ignore[misc]
        written = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers += [text.strip() for text in written]
    return answers


def score_answers(samples: Sequence[Sample], answers: Sequence[str]) -> list[Row]:
    """Return one row for each question type and answer type, by name."""
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for sample, answer in zip(samples, answers, strict=True):
        key = (sample.groups["question_type"], sample.answer_type or "")
        groups[key].append((answer.lower(), sample.references[0].lower()))
    rows = []
    for (question_type, answer_type), pairs in sorted(groups.items()):
        right = sum(answer == reference for answer, reference in pairs) / len(pairs)
        most = Counter(reference for _, reference in pairs).most_common(1)[0][1] / len(pairs)
        rows.append(Row(question_type, answer_type, len(pairs), right, most))
    return rows


def write_readme(folder: Path, command: str) -> Path:
    """Score the model in the folder, write its `README.md` and return the path."""
    model, processor = load_model(folder)
    prompts = read_prompts()
    questions = read_samples(QUESTIONS, "test")
    rows = score_answers(questions, answer_samples(model, processor, questions, prompts[QUESTIONS]))
    captioned = read_samples(CAPTIONS, "test")
    captions = answer_samples(model, processor, captioned, prompts[CAPTIONS], new_tokens=48)
    lines = _head(folder, command, sum(p.numel() for p in model.parameters()))
    lines += ["| question type | answers | questions | right | majority answer |", "|---|---|---:|---:|---:|"]
    lines += [row.as_markdown() for row in rows]
    right = sum(row.right * row.questions for row in rows) / len(questions)
    lines += [f"| all | | {len(questions)} | {right:.3f} | |", "", "Captions of the first five test images:", ""]
    lines += ["| the model | the reference |", "|---|---|"]
    lines += [f"| {text} | {s.references[0]} |" for text, s in list(zip(captions, captioned, strict=True))[:5]]
    sound = sum(_facts_of(text) == _facts_of(s.references[0]) for text, s in zip(captions, captioned, strict=True))
    lines += ["", f"{sound} of {len(captions)} captions name the facts of the reference, in whatever phrasing.", ""]
    path = folder / "README.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _head(folder: Path, command: str, parameters: int) -> list[str]:
    return [
        f"# {folder.name}",
        "",
        f"A LLaVA of {parameters:,} parameters (float32) trained from nothing on phantoms, drawn images that look like",
        "radiology from afar. It is there to try out the harness; **what it scores says nothing of medicine.**",
        "Licence: Apache-2.0, weights included.",
        "",
        f"- Made by `{command}` (`make tiny-models`), which writes this page as `python -m mhe_tiny.report` does.",
        f"- SHA-256 of `model.safetensors`: `{file_digest(folder / 'model.safetensors')}`",
        "- Trained on streams of the phantom tasks' train split, each image seen once; scored on their test splits.",
        "- Another processor or another version of torch may give other weights from the same seed, of like scores.",
        "",
        "Scores (greedy, exact match after lower-casing; the majority answer is the best constant for that row):",
        "",
    ]


def _facts_of(caption: str) -> frozenset[str]:
    """The words of a caption that say something: phrasings differ in the others."""
    empty = {"axial", "scan", "image", "plain", "frontal", "of", "the", "on", "side", "showing", "with", "a", "is"}
    words = caption.lower().replace(".", "").replace(":", "").replace("without any", "no").split()
    return frozenset(words) - empty - {"seen"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m mhe_tiny.report", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--command", default=COMMAND, help="shown on the page")
    chosen = parser.parse_args(arguments)
    write_readme(chosen.folder, chosen.command)


if __name__ == "__main__":
    main()
