"""What families without conversations share: one image, one text, one answer to a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import SampleModelError, TrainingExample, open_image
from mhe_hf.conversations import check_text
from mhe_hf.families.family import Encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

    import PIL.Image
    import torch
    from transformers import ProcessorMixin

    from mhe import Message


def question_of(processor: ProcessorMixin, messages: Sequence[Message]) -> str:
    """The text that goes with the one image: the system's, if any, before the user's.

    Raises `SampleModelError` for a conversation of several turns, for no image or several, and for control tokens.
    """
    shown = sum(message.images for message in messages)
    if shown != 1:
        raise SampleModelError(f"this model is shown one image at a time, and the sample has {shown}")
    roles = [message.role for message in messages if message.role != "system"]
    if roles != ["user"]:
        raise SampleModelError(
            f"this model answers one question and takes no conversation; the prompt has the turns {', '.join(roles)}"
        )
    for message in messages:
        check_text(processor, message.text, f"the {message.role}'s text")
    return "\n".join(message.text for message in messages)


def bare_question_of(processor: ProcessorMixin, messages: Sequence[Message]) -> str:
    """The question without the words that a task puts around it, for a model that was trained so; what `question_of`
    gives where the messages ask none. Raises what `question_of` raises.
    """
    text = question_of(processor, messages)
    bare = [message.question for message in messages if message.question is not None]
    if not bare:
        return text
    check_text(processor, bare[0], "the question")
    return bare[0]


def flat_rows(examples: Sequence[TrainingExample | Sequence[TrainingExample]]) -> list[TrainingExample]:
    """Each example in a row of its own: there is no conversation that several could share."""
    return [one for row in examples for one in ([row] if isinstance(row, TrainingExample) else row)]


def image_features(processor: ProcessorMixin, pictures: Sequence[Sequence[PIL.Image.Image]]) -> torch.Tensor:
    """`pixel_values` of one picture a row."""
    features = processor.image_processor([row[0] for row in pictures], return_tensors="pt")
    pixels: torch.Tensor = features["pixel_values"]
    return pixels


def training_pixels(processor: ProcessorMixin, rows: Sequence[TrainingExample]) -> torch.Tensor:
    """`pixel_values` of the examples' images. Raises `SampleDataError` for one that cannot be read."""
    return image_features(processor, [[open_image(image) for image in row.request.images] for row in rows])


def answer_tokens(processor: ProcessorMixin, row: TrainingExample, *, follows_text: bool, end: int) -> list[int]:
    """Tokens of the answer and of its end. Raises `SampleModelError` for a control token in the answer."""
    check_text(processor, row.answer, f"sample {row.request.sample_id}: the answer")
    text = f" {row.answer.lstrip()}" if follows_text else row.answer
    return [*processor.tokenizer(text, add_special_tokens=False)["input_ids"], end]


def check_length(row: TrainingExample, tokens: int, context: int | None) -> None:
    """Raise `SampleModelError` for a training row beyond the context."""
    if context is not None and tokens > context:
        raise SampleModelError(
            f"training row {row.request.sample_id}: {tokens} tokens, and the model's context is {context}"
        )


def padded(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Rows of unequal length as one tensor, filled on the right."""
    import torch

    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *([fill] * (longest - len(row)))] for row in rows])


def beginning(processor: ProcessorMixin, start: int, prefix: str) -> list[int]:
    """What every caption begins with: the start token and the prefix."""
    return [start, *processor.tokenizer(prefix, add_special_tokens=False)["input_ids"]]


def encode_captions(
    processor: ProcessorMixin, ids: Sequence[int], name: str, pictures: Sequence[Sequence[PIL.Image.Image]]
) -> Encoded:
    """One image a row and the same beginning for all, as the input `name`, so that nothing is padded."""
    import torch

    inputs = {"pixel_values": image_features(processor, pictures), name: torch.tensor([list(ids)] * len(pictures))}
    return Encoded(inputs, (len(ids),) * len(pictures))
