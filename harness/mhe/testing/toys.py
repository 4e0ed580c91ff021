"""Toy samples, tasks and requests, in memory: real PNG bytes, real documents, nothing on disk and nothing to download."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Literal

from mhe.documents.model import ModelSpec
from mhe.documents.task import Generation, Prompt, ReaderChoice, Source, Split, TaskSpec
from mhe.images import BytesSource
from mhe.prompting import build_request
from mhe.protocols import BackendContext
from mhe.values import Case, Image, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mhe.values import Request

Kind = Literal["caption", "vqa"]

HOSTILE_TEXTS: tuple[str, ...] = (
    "",
    "   \n\t ",
    "yes\nno\r\nyes",
    "{question} {0} %s $HOME \\n",
    "الكبد في الجهة اليمنى",
    "左肺有病变。",
    "<image> </s> [INST] <|im_end|>",
    "zero\u200bwidth \u2028separator \ufeff mark",
    "e\u0301 \u00e9 \U0001f9e0",
    "5 mm < 1.5 cm; T1/T2-weighted (p<0.05)",
    "nul \x00 byte",
    "long " * 20_000,
)
"""What data sets and models really contain: nothing, newlines, braces, right-to-left, control characters, 100 kB."""

_QUESTIONS = (
    ("Is there a lesion?", "yes", "closed"),
    ("Which side is it on?", "left", "open"),
    ("Is the image a radiograph?", "no", "closed"),
    ("Which organ is shown?", "right lung", "open"),
)
_CAPTIONS = (
    "Chest radiograph showing a round opacity in the left upper lobe.",
    "Axial CT of the abdomen with a 12 mm hypodense lesion of the liver.",
    "T2-weighted MRI of the head without a lesion.",
)


def toy_png(shade: int = 0, size: int = 16) -> bytes:
    """A grey PNG of `size` x `size` pixels, brighter to the right; `shade` (0 to 255) makes contents differ."""
    rows = b"".join(
        b"\x00" + bytes((shade + 7 * column + 3 * row) % 256 for column in range(size)) for row in range(size)
    )
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def toy_samples(n: int, kind: Kind = "vqa") -> list[Sample]:
    """`n` samples, two to an image, with ids `toy-0`, `toy-1`, …; the groups are `modality` and `question_type`.

    Of `vqa`, every other question is closed. Of `caption`, every other sample has two references.
    """
    samples = []
    for number in range(n):
        image = Image(f"toy-image-{number // 2}", BytesSource(toy_png(number // 2 % 256)))
        modality = ("CT", "MRI", "radiograph")[number // 2 % 3]
        if kind == "caption":
            caption = _CAPTIONS[number % len(_CAPTIONS)]
            references = (caption, caption.lower().rstrip(".")) if number % 2 else (caption,)
            samples.append(Sample(f"toy-{number}", (image,), references, groups={"modality": modality}))
            continue
        question, answer, answer_type = _QUESTIONS[number % len(_QUESTIONS)]
        samples.append(
            Sample(
                id=f"toy-{number}",
                images=(image,),
                references=(answer,),
                question=question,
                answer_type="closed" if answer_type == "closed" else "open",
                groups={"modality": modality, "question_type": question.split()[0].lower()},
            )
        )
    return samples


def toy_cases(n: int, kind: Kind = "vqa") -> list[Case]:
    """`n` toy samples with answers: right, in other words, wrong and empty ones in turn."""
    cases = []
    for number, sample in enumerate(toy_samples(n, kind)):
        right = sample.references[0]
        answers = (right, right.upper() + " indeed", "something else entirely", "")
        cases.append(Case(sample, answers[number % len(answers)]))
    return cases


def toy_task(kind: Kind = "vqa", **changes: object) -> TaskSpec:
    """A valid task named `toy` of the reader `toy`; `changes` are keys of `task.yaml`. Raises pydantic's error."""
    metrics = ("accuracy",) if kind == "vqa" else ("bleu",)
    task = TaskSpec(
        name="toy",
        version=1,
        title="Toy",
        kind=kind,
        summary="Toy samples in memory",
        source=Source(homepage="in memory", licence="Apache-2.0", citation="none"),
        reader=ReaderChoice(name="toy"),
        splits={"train": Split(), "test": Split()},
        prompt=Prompt(user="{question}" if kind == "vqa" else "Describe the image."),
        generation=Generation(max_new_tokens=8),
        metrics=metrics,
        primary=metrics[0] if kind == "vqa" else "bleu-4",
        profile="strict" if kind == "vqa" else "plain",
    )
    return TaskSpec.model_validate({**task.model_dump(), **changes}) if changes else task


def toy_requests(samples: Sequence[Sample], *, seed: int = 0, generation: Generation | None = None) -> list[Request]:
    """What evaluation would ask about the samples; greedy, at most 8 new tokens unless told otherwise."""
    kind: Kind = "caption" if samples and samples[0].question is None else "vqa"
    task = toy_task(kind)
    return [build_request(task, sample, generation or task.generation, seed) for sample in samples]


def toy_model(backend: str, location: str = "in memory", **options: object) -> ModelSpec:
    """A model named `toy` of a backend, with backend options."""
    return ModelSpec(name="toy", backend=backend, location=location, options=dict(options))


def toy_context(folder: Path, *, samples: Sequence[Sample] = (), seed: int = 0) -> BackendContext:
    """What a backend may use: `folder` for its cache, `samples` as training split, no network."""
    kept = list(samples)
    return BackendContext(offline=True, cache_dir=folder, training_samples=lambda: kept, seed=seed)


class PlainProfile:
    """Lower case and single blanks; an answer is right if it equals a reference. For tests without other plugins."""

    name = "toy-plain"
    version = "1"
    kind = "vqa"
    source = "mhe.testing"
    defects: Sequence[str] = ()

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Lower case, single blanks."""
        return [" ".join(text.lower().split()) for text in texts]

    def question_type(self, sample: Sample) -> str:
        """As the sample says, else `open`."""
        return sample.answer_type or "open"

    def credit(self, answer: str, sample: Sample) -> float:
        """1 where the cleaned answer is a cleaned reference."""
        return float(self.clean([answer])[0] in self.clean(sample.references))
