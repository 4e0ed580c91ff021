"""Toy samples, tasks and requests, in memory: real PNG bytes, real documents, nothing to download."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from mhe.documents.base import Part
from mhe.documents.task import Generation, Prompt, ReaderChoice, Source, Split, TaskSpec
from mhe.errors import UserError
from mhe.images import BytesSource
from mhe.prompting import build_request
from mhe.values import Case, Image, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mhe.protocols import ReadContext
    from mhe.values import Request

Kind = Literal["caption", "vqa"]

FIRST_OF_SPLIT = {"train": 1_000_000, "validation": 2_000_000, "test": 0}
"""Where the numbers of a split begin: no split shares a sample or an image."""

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
    ("Is there a lesion?", "yes", True),
    ("Which side is it on?", "left", False),
    ("Is the image a radiograph?", "no", True),
    ("Which organ is shown?", "right lung", False),
)
_CAPTIONS = (
    "Chest radiograph showing a round opacity in the left upper lobe.",
    "Axial CT of the abdomen with a 12 mm hypodense lesion of the liver.",
    "T2-weighted MRI of the head without a lesion.",
)


def tiny_png(content: int = 0, size: int = 16) -> bytes:
    """A grey PNG of `size` x `size` pixels, brighter to the right; another `content` has other pixels."""
    # The first row spells the number, so that no two contents are alike.
    spelled = (content.to_bytes(4, "big") * size)[:size]
    shades = [bytes((7 * x + 3 * y) % 256 for x in range(size)) for y in range(1, size)]
    rows = b"".join(b"\x00" + row for row in [spelled, *shades])
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def toy_samples(n: int, kind: Kind = "vqa", *, first: int = 0) -> list[Sample]:
    """`n` samples, two to an image, with ids from `toy-FIRST` on; the groups are `modality` and `question_type`.

    Of `vqa`, every other question is closed. Of `caption`, every other sample has two references.
    """
    samples = []
    for number in range(first, first + n):
        image = Image(f"toy-image-{number // 2}", BytesSource(tiny_png(number // 2)))
        modality = ("CT", "MRI", "radiograph")[number // 2 % 3]
        if kind == "caption":
            caption = _CAPTIONS[number % len(_CAPTIONS)]
            references = (caption, caption.lower().rstrip(".")) if number % 2 else (caption,)
            samples.append(Sample(f"toy-{number}", (image,), references, groups={"modality": modality}))
            continue
        question, answer, is_closed = _QUESTIONS[number % len(_QUESTIONS)]
        samples.append(
            Sample(
                id=f"toy-{number}",
                images=(image,),
                references=(answer,),
                question=question,
                answer_type="closed" if is_closed else "open",
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
    """A valid task named `toy` of the reader `toy`; `changes` are keys of `task.yaml`. Raises pydantic's error.

    Its metric and profile are of mhe's own plugin; a test without that plugin names others in `changes`.
    """
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


def toy_requests(
    n: int, kind: Kind = "vqa", *, first: int = 0, seed: int = 0, generation: Generation | None = None
) -> list[Request]:
    """What evaluation would ask about `toy_samples`; greedy, at most 8 new tokens unless told otherwise."""
    task = toy_task(kind)
    chosen = generation or task.generation
    return [build_request(task, sample, chosen, seed) for sample in toy_samples(n, kind, first=first)]


class ToyOptions(Part):
    """Which toy samples to make."""

    kind: Kind = "vqa"
    """Questions, or captions."""
    count: Annotated[int, Field(ge=1, le=1000)] = 12
    """Samples in each split."""


class ToyReader:
    """Toy samples as a data set of three splits; needs no data on disk."""

    Options = ToyOptions

    def __init__(self, options: ToyOptions) -> None:
        self._options = options

    def read(self, context: ReadContext) -> Iterator[Sample]:
        """The samples of `context.split`: train, validation or test. Raises `UserError` for another split."""
        if context.split not in FIRST_OF_SPLIT:
            raise UserError(f"toy split {context.split!r} is unknown; the splits are {', '.join(FIRST_OF_SPLIT)}")
        yield from toy_samples(self._options.count, self._options.kind, first=FIRST_OF_SPLIT[context.split])


class ToyProfile:
    """Lower case and single blanks; an answer is right if it equals a reference. For tests without other plugins."""

    name = "toy"
    version = "1"
    source = "mhe.testing"
    defects: Sequence[str] = ()

    def __init__(self, kind: Kind = "vqa") -> None:
        self.kind: str = kind

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Lower case, single blanks."""
        return [" ".join(text.lower().split()) for text in texts]

    def question_type(self, sample: Sample) -> str:
        """As the sample says, else `open`."""
        return sample.answer_type or "open"

    def credit(self, answer: str, sample: Sample) -> float:
        """1 where the cleaned answer is a cleaned reference."""
        return float(self.clean([answer])[0] in self.clean(sample.references))
