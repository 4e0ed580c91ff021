"""From sample to request: one rendering of prompts for every backend and for training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mhe.digests import digest_of
from mhe.values import Message, Request

if TYPE_CHECKING:
    from mhe.documents.task import Generation, TaskSpec
    from mhe.values import Sample


def build_request(task: TaskSpec, sample: Sample, generation: Generation, seed: int) -> Request:
    """What a backend is asked about a sample.

    The request's seed depends on the run's seed and the sample's id alone, so that an answer depends neither on
    the order of samples nor on their neighbours in a batch.
    """
    # `str.format` would read the braces of a question as fields.
    text = task.prompt.user.replace("{question}", sample.question or "")
    messages = [Message("system", task.prompt.system)] if task.prompt.system else []
    messages.append(Message("user", text, images=len(sample.images)))
    images = tuple(
        replace(image, resize=task.images.resize) if task.images.resize else image for image in sample.images
    )
    content = {
        "messages": [[m.role, m.text, m.images] for m in messages],
        "images": [[image.source.digest(), list(image.resize or ())] for image in images],
    }
    return Request(
        sample_id=sample.id,
        messages=tuple(messages),
        images=images,
        generation=generation,
        seed=int(digest_of([seed, sample.id])[:15], 16),
        digest=digest_of(content),
        answer_type=sample.answer_type,
        groups=sample.groups,
    )
