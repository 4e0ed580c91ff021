"""Phantoms as samples.

An image's seed is made of its split, the stream and its place in the stream, so that splits and streams share no
seed. Whatever a reader leaves out (a modality, a question type), the images and questions it keeps are the same
ones, with the same ids.

Subtle phantoms come in two parts that share no image: images at even places are for the source, at odd places for the
target. The source has neither ultrasound nor size; the target has what the source lacks.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import PIL.Image
from pydantic import BaseModel, Field, model_validator

from mhe import Image, Part, ReadContext, Sample, UserError
from mhe_tasks.phantom.captions import write_caption
from mhe_tasks.phantom.drawing import Pixels, draw_pixels
from mhe_tasks.phantom.facts import MODALITIES, Facts, Modality, draw_facts
from mhe_tasks.phantom.questions import QUESTION_TYPES, QuestionType, ask_questions
from mhe_tasks.phantom.subtle import draw_subtle_facts

SPLITS = ("train", "validation", "test")
DEFAULT_COUNTS = {"train": 2000, "validation": 100, "test": 300}

Findings = Literal["plain", "subtle"]
Scope = Literal["all", "source", "target"]
_DRAW_FACTS = {"plain": draw_facts, "subtle": draw_subtle_facts}

# The seed's 64 bits: 2 for the split, 22 for the stream, 40 for the place.
_PLACE_BITS = 40
_STREAM_BITS = 22


@dataclass(frozen=True, slots=True)
class PhantomSource:
    """A phantom that is drawn when it is read."""

    seed: int
    size: int
    findings: Findings = "plain"

    def facts(self) -> Facts:
        """Return what is true of it."""
        return _DRAW_FACTS[self.findings](self.seed)

    def draw(self) -> Pixels:
        """Return the grey levels, shape (size, size)."""
        return draw_pixels(self.facts(), self.size)

    def read(self) -> bytes:
        """Return the image as PNG."""
        buffer = io.BytesIO()
        # Level 1: the images are read once, and noise does not compress.
        PIL.Image.fromarray(self.draw(), "L").save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def digest(self) -> str:
        """Return the digest of size and raw pixels: that of the PNG depends on the machine's zlib."""
        return hashlib.sha256(f"phantom {self.size} ".encode() + self.draw().tobytes()).hexdigest()


class PhantomOptions(Part):
    """Which phantoms to draw and what to ask of them."""

    ask: Literal["caption", "questions"] = "questions"
    """One sample an image with its caption, or one sample a question."""
    count: Annotated[int, Field(ge=1, lt=1 << _PLACE_BITS)] | None = None
    """Images in the split; 2000 for training, 100 for validation and 300 for the test where it is not given."""
    seed: Annotated[int, Field(ge=0, lt=1 << _STREAM_BITS)] = 0
    """The stream: another one has other images, in every split."""
    size: Annotated[int, Field(ge=32, le=512)] = 64
    """Width and height of the image in pixels."""
    findings: Findings = "plain"
    """Plain: lesions that stand out; subtle: small, faint ones, with a shape and a quadrant."""
    scope: Scope = "all"
    """Which part of the subtle phantoms: source (no ultrasound, no size) or target (the rest)."""
    modalities: tuple[Modality, ...] = MODALITIES
    """Modalities to keep."""
    question_types: tuple[QuestionType, ...] = QUESTION_TYPES
    """Types of question to keep."""
    per_type: Literal[1, 2] = 1
    """1: each type is asked openly or closed; 2: in both ways."""

    @model_validator(mode="after")
    def _only_subtle_phantoms_have_parts(self) -> Self:
        if self.scope != "all" and self.findings != "subtle":
            raise ValueError(f"scope {self.scope!r} needs findings 'subtle'; plain phantoms have only scope 'all'")
        if self.scope == "source" and set(self.modalities) == {"ultrasound"}:
            # The search for such images would never end.
            raise ValueError("scope 'source' has no ultrasound; name other modalities, or scope 'target'")
        return self


def image_seed(split: str, stream: int, place: int) -> int:
    """Return the 64-bit seed of an image; raises `UserError` for an unknown split."""
    if split not in SPLITS:
        raise UserError(f"phantom split {split!r} is unknown; the splits are {', '.join(SPLITS)}")
    return SPLITS.index(split) << (_STREAM_BITS + _PLACE_BITS) | stream << _PLACE_BITS | place


class PhantomReader:
    """Draws the samples of a split; needs no data on disk."""

    Options: ClassVar[type[BaseModel]] = PhantomOptions

    def __init__(self, options: BaseModel) -> None:
        self._options = PhantomOptions.model_validate(options.model_dump())

    def read(self, context: ReadContext) -> Iterator[Sample]:
        """Yield the samples of `context.split`; `data_dir` and `hub` mean nothing here."""
        options = self._options
        count = options.count if options.count is not None else DEFAULT_COUNTS.get(context.split, 0)
        kept, place = 0, 0
        # An empty choice of modalities would search for ever.
        while kept < count and options.modalities:
            source = PhantomSource(image_seed(context.split, options.seed, place), options.size, options.findings)
            is_in_scope = options.scope == "all" or (options.scope == "target") == bool(place % 2)
            place += 1
            facts = source.facts()
            if is_in_scope and facts.modality in options.modalities and self._asked_types(facts):
                kept += 1
                yield from self._samples_of(source, facts)

    def _asked_types(self, facts: Facts) -> tuple[QuestionType, ...]:
        """Types that the scope asks of an image; none where it leaves the image out."""
        is_ultrasound = facts.modality == "ultrasound"
        if self._options.scope == "all" or (self._options.scope == "target" and is_ultrasound):
            return QUESTION_TYPES
        if self._options.scope == "target":
            return ("size",) if facts.number else ()
        return () if is_ultrasound else tuple(kind for kind in QUESTION_TYPES if kind != "size")

    def _samples_of(self, source: PhantomSource, facts: Facts) -> Iterator[Sample]:
        options = self._options
        name = f"phantom-{source.seed:016x}" if source.findings == "plain" else f"subtle-{source.seed:016x}"
        images = (Image(id=name, source=source),)
        groups = {"modality": facts.modality, "region": facts.region}
        if options.ask == "caption":
            caption = write_caption(facts, names_size=options.scope != "source")
            yield Sample(id=name, images=images, references=(caption,), groups=groups)
            return
        types = [kind for kind in self._asked_types(facts) if kind in options.question_types]
        for question in ask_questions(facts, types, options.per_type):
            yield Sample(
                id=f"{name}-{question.question_type}-{question.answer_type}",
                images=images,
                references=(question.answer,),
                question=question.text,
                answer_type=question.answer_type,
                groups={**groups, "question_type": question.question_type},
            )
