"""What the small models learn: phantoms, each with all that is asked of it, read through the public names of `mhe`.

Each stream of the phantom tasks has other images, so that a model in training never sees an image twice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from mhe import Image, Sample, open_catalog, open_image, read_samples

if TYPE_CHECKING:
    import PIL.Image

QUESTIONS = "phantom-vqa"
CAPTIONS = "phantom-caption"
IMAGES_A_STREAM = 2048


@dataclass(frozen=True, slots=True)
class Lesson:
    """One image with its turns (prompt, answer) and its facts (question type -> open answer)."""

    image: Image
    turns: tuple[tuple[str, str], ...]
    facts: Mapping[str, str]

    def open(self) -> PIL.Image.Image:
        """Return the decoded image."""
        return open_image(self.image)


def read_lessons(stream: int, count: int) -> list[Lesson]:
    """Return the lessons of the first `count` images of a stream of the train split.

    A type that can be asked openly and closed is asked in one way, drawn from the stream: two times in three closed,
    because whether a named value holds is learnt much later than to name it.
    """
    asked = read_samples(QUESTIONS, "train", options={"seed": stream, "count": count, "per_type": 2})
    captioned = read_samples(CAPTIONS, "train", options={"seed": stream, "count": count})
    prompts = read_prompts()
    coin = random.Random(stream)
    by_image = {name: list(group) for name, group in groupby(asked, key=lambda sample: sample.images[0].id)}
    lessons = []
    for caption in captioned:
        image = caption.images[0]
        questions = by_image[image.id]
        turns = [
            (prompts[QUESTIONS].replace("{question}", sample.question or ""), sample.references[0])
            for sample in _one_a_type(questions, coin)
        ]
        turns.append((prompts[CAPTIONS], caption.references[0]))
        facts = {s.groups["question_type"]: s.references[0] for s in questions if s.answer_type == "open"}
        lessons.append(Lesson(image, tuple(turns), facts))
    return lessons


def stream_lessons(first_stream: int) -> Iterator[Lesson]:
    """Yield fresh lessons without end."""
    stream = first_stream
    while True:
        yield from read_lessons(stream, IMAGES_A_STREAM)
        stream += 1


def read_prompts() -> dict[str, str]:
    """Return the prompts of the phantom tasks, as evaluation uses them."""
    catalog = open_catalog()
    return {name: catalog.task(name).prompt.user for name in (QUESTIONS, CAPTIONS)}


def _one_a_type(samples: Sequence[Sample], coin: random.Random) -> list[Sample]:
    grouped = groupby(samples, key=lambda sample: sample.groups["question_type"])
    # The stable order is closed before open; presence has no open question.
    return [coin.choices(both, weights=(2, 1)[: len(both)])[0] for both in (list(group) for _, group in grouped)]
