"""What the small models learn: phantoms, each with all that is asked of it, read through the public names of `mhe`.

Each stream of the phantom tasks has other images, so that a model in training never sees an image twice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from mhe import Image, Sample, open_catalog, open_image, read_samples

if TYPE_CHECKING:
    import PIL.Image

IMAGES_A_STREAM = 2048


@dataclass(frozen=True, slots=True)
class Curriculum:
    """The two tasks over the same images that lessons are made of."""

    questions: str
    captions: str

    def read_prompts(self) -> tuple[str, str]:
        """Return the prompts of both tasks, as evaluation uses them."""
        catalog = open_catalog()
        return catalog.task(self.questions).prompt.user, catalog.task(self.captions).prompt.user


PLAIN = Curriculum("phantom-vqa", "phantom-caption")
SOURCE = Curriculum("phantom-vqa-source", "phantom-caption-source")
TARGET = Curriculum("phantom-vqa-target", "phantom-caption-target")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One image with its turns (prompt, answer), its caption and its facts (question type -> open answer)."""

    image: Image
    turns: tuple[tuple[str, str], ...]
    """Questions, and the prompt of the caption task with the caption."""
    caption: str
    facts: Mapping[str, str]

    def open(self) -> PIL.Image.Image:
        """Return the decoded image."""
        return open_image(self.image)


def read_lessons(curriculum: Curriculum, stream: int, count: int) -> list[Lesson]:
    """Return the lessons of the first `count` images of a stream of the train split.

    A type that can be asked openly and closed is asked in one way, drawn from the stream: two times in three closed,
    because whether a named value holds is learnt much later than to name it.
    """
    asked = read_samples(curriculum.questions, "train", options={"seed": stream, "count": count, "per_type": 2})
    captioned = read_samples(curriculum.captions, "train", options={"seed": stream, "count": count})
    question_prompt, caption_prompt = curriculum.read_prompts()
    coin = random.Random(stream)
    by_image = {name: list(group) for name, group in groupby(asked, key=lambda sample: sample.images[0].id)}
    lessons = []
    for caption in captioned:
        image = caption.images[0]
        questions = by_image[image.id]
        turns = [
            (question_prompt.replace("{question}", sample.question or ""), sample.references[0])
            for sample in _one_a_type(questions, coin)
        ]
        turns.append((caption_prompt, caption.references[0]))
        facts = {s.groups["question_type"]: s.references[0] for s in questions if s.answer_type == "open"}
        lessons.append(Lesson(image, tuple(turns), caption.references[0], facts))
    return lessons


def only_captions(lessons: Sequence[Lesson]) -> list[Lesson]:
    """Return the lessons with one turn each, for models that read no prompt: the caption."""
    return [replace(lesson, turns=(("", lesson.caption),)) for lesson in lessons]


def stream_lessons(curriculum: Curriculum, first_stream: int) -> Iterator[Lesson]:
    """Yield fresh lessons without end."""
    stream = first_stream
    while True:
        yield from read_lessons(curriculum, stream, IMAGES_A_STREAM)
        stream += 1


def _one_a_type(samples: Sequence[Sample], coin: random.Random) -> list[Sample]:
    grouped = groupby(samples, key=lambda sample: sample.groups["question_type"])
    # The stable order is closed before open; presence has no open question.
    return [coin.choices(both, weights=(2, 1)[: len(both)])[0] for both in (list(group) for _, group in grouped)]
