"""Scores of a small model by question type, beside the majority answer: `python -m mhe_tiny.report NAME [FOLDER]`.

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
from mhe_tiny import MODELS
from mhe_tiny.build import BUILDERS, find_builder
from mhe_tiny.lessons import SOURCE, TARGET, Curriculum

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mhe_tiny.architecture import Learner, Processor

BATCH = 64
ANSWER_TOKENS = 8
CAPTION_TOKENS = 48


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


def load_model(name: str, folder: Path) -> tuple[PreTrainedModel, Processor]:
    """Return the model as transformers alone loads it, and its processor around the stored tokenizer."""
    import transformers

    architecture = find_builder(name).architecture
    model: PreTrainedModel = getattr(transformers, architecture.CLASS).from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return model.eval(), architecture.build_processor(tokenizer)


def load_learner(name: str, folder: Path) -> Learner:
    """Return what asks the model in the folder."""
    return find_builder(name).architecture.build_learner(*load_model(name, folder))


def answer_samples(
    learner: Learner, samples: Sequence[Sample], prompt: str, new_tokens: int = ANSWER_TOKENS
) -> list[str]:
    """Return the greedy answer to each sample."""
    answers: list[str] = []
    for start in range(0, len(samples), BATCH):
        part = samples[start : start + BATCH]
        asked = [prompt.replace("{question}", sample.question or "") for sample in part]
        answers += learner.ask([open_image(sample.images[0]) for sample in part], asked, new_tokens)
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


def write_readme(name: str, folder: Path, command: str) -> Path:
    """Score the model in the folder, write its `README.md` and return the path."""
    builder = find_builder(name)
    learner = load_learner(name, folder)
    lines = _head(name, folder, command)
    curricula = [SOURCE, TARGET] if builder.curriculum == SOURCE else [builder.curriculum]
    for curriculum in curricula:
        if builder.architecture.ANSWERS_QUESTIONS:
            lines += _question_table(learner, curriculum)
        lines += _caption_table(learner, curriculum)
    path = folder / "README.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _question_table(learner: Learner, curriculum: Curriculum) -> list[str]:
    questions = read_samples(curriculum.questions, "test")
    rows = score_answers(questions, answer_samples(learner, questions, curriculum.read_prompts()[0]))
    right = sum(row.right * row.questions for row in rows) / len(questions)
    most = sum(row.majority * row.questions for row in rows) / len(questions)
    return [
        f"`{curriculum.questions}`, test split:",
        "",
        "| question type | answers | questions | right | majority answer |",
        "|---|---|---:|---:|---:|",
        *(row.as_markdown() for row in rows),
        f"| all | | {len(questions)} | {right:.3f} | {most:.3f} |",
        "",
    ]


def _caption_table(learner: Learner, curriculum: Curriculum) -> list[str]:
    captioned = read_samples(curriculum.captions, "test")
    captions = answer_samples(learner, captioned, curriculum.read_prompts()[1], CAPTION_TOKENS)
    sound = sum(_facts_of(text) == _facts_of(s.references[0]) for text, s in zip(captions, captioned, strict=True))
    return [
        f"`{curriculum.captions}`, first five of the test split:",
        "",
        "| the model | the reference |",
        "|---|---|",
        *(f"| {text} | {s.references[0]} |" for text, s in list(zip(captions, captioned, strict=True))[:5]),
        "",
        f"{sound} of {len(captions)} captions name the facts of the reference, in whatever phrasing.",
        "",
    ]


def _head(name: str, folder: Path, command: str) -> list[str]:
    builder = find_builder(name)
    parameters = sum(p.numel() for p in load_model(name, folder)[0].parameters())
    kept = "float16, loaded as float32" if builder.is_halved else "float32"
    return [
        f"# {name}",
        "",
        f"`{builder.architecture.CLASS}` with {parameters:,} parameters ({kept}), trained from nothing on phantoms,",
        "drawn images that look like radiology from afar. It is there to try out the harness; **what it scores says",
        "nothing of medicine.** Licence: Apache-2.0, weights included.",
        "",
        f"- Made by `{command}`, which writes this page as `python -m mhe_tiny.report` does.",
        f"- SHA-256 of `model.safetensors`: `{file_digest(folder / 'model.safetensors')}`",
        f"- Trained on streams of the train splits of `{builder.curriculum.questions}` and",
        f"  `{builder.curriculum.captions}`, each image seen once; scored on test splits.",
        "- Another processor or another version of torch may give other weights from the same seed, of like scores.",
        "",
        "Scores are greedy, exact match after lower-casing; the majority answer is the best constant for that row.",
        "",
    ]


def _facts_of(caption: str) -> frozenset[str]:
    """The words of a caption that say something: phrasings differ in the others."""
    empty = {"axial", "scan", "image", "plain", "frontal", "of", "the", "on", "in", "side", "quadrant", "showing"}
    words = caption.lower().replace(".", "").replace(":", "").replace("without any", "no").split()
    return frozenset(words) - empty - {"with", "a", "is", "seen"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m mhe_tiny.report", description=__doc__)
    parser.add_argument("name", choices=sorted(BUILDERS))
    parser.add_argument("folder", type=Path, nargs="?", help="where it lies, if not in the package")
    parser.add_argument("--command", help="shown on the page")
    chosen = parser.parse_args(arguments)
    command = chosen.command or f"python -m mhe_tiny.train {chosen.name} --seed 0 --out FOLDER"
    write_readme(chosen.name, chosen.folder or MODELS / chosen.name, command)


if __name__ == "__main__":
    main()
