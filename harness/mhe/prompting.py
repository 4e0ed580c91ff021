"""From sample to request: one rendering of prompts for every backend and for training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mhe.digests import digest_of
from mhe.values import Message, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.documents.task import Generation, TaskSpec
    from mhe.values import Image, Sample


def build_request(task: TaskSpec, sample: Sample, generation: Generation, seed: int) -> Request:
    """What a backend is asked about a sample.

    The request's seed depends on the run's seed and the sample's id alone, so that an answer depends neither on
    the order of samples nor on their neighbours in a batch.
    """
    # `str.format` would read the braces of a question as fields.
    text = task.prompt.user.replace("{question}", sample.question or "")
    messages = [Message("system", task.prompt.system)] if task.prompt.system else []
    asked = sample.question if "{question}" in task.prompt.user else None
    messages.append(Message("user", text, images=len(sample.images), question=asked))
    images = tuple(
        replace(image, resize=task.images.resize) if task.images.resize else image for image in sample.images
    )
    return Request(
        sample_id=sample.id,
        messages=tuple(messages),
        images=images,
        generation=generation,
        seed=int(digest_of([seed, sample.id])[:15], 16),
        digest=_digest(messages, images),
        answer_type=sample.answer_type,
        groups=sample.groups,
    )


def replace_messages(request: Request, messages: Sequence[Message]) -> Request:
    """The request asked in other words, with the digest that belongs to them.

    For recipes that train on prompts of their own; what is evaluated is always what `build_request` made.
    Raises `ValueError` where the messages do not show the request's images once.
    """
    shown = sum(message.images for message in messages)
    if shown != len(request.images):
        raise ValueError(f"the messages show {shown} images, and the request has {len(request.images)}")
    return replace(request, messages=tuple(messages), digest=_digest(messages, request.images))


def _digest(messages: Sequence[Message], images: Sequence[Image]) -> str:
    # The bare question is left out: within a task it stands in the text once more, and tells nothing new.
    content = {
        "messages": [[m.role, m.text, m.images] for m in messages],
        "images": [[image.source.digest(), list(image.resize or ())] for image in images],
    }
    return digest_of(content)
