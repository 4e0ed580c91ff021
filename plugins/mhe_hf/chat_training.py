"""Training inputs of models with a chat template, made the way evaluation makes prompts.

Several questions of one image may share a sequence: the conversation goes on, and the image is seen once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe import Message, SampleModelError, TrainingExample, open_image
from mhe_hf.conversations import adds_special_tokens, check_text, render
from mhe_hf.families.family import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import ProcessorMixin

    from mhe import Image


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a conversation's text; learnt or only read."""

    text: str
    is_learnt: bool


def collate_conversations(
    examples: Sequence[TrainingExample | Sequence[TrainingExample]],
    processor: ProcessorMixin,
    *,
    context: int | None,
) -> dict[str, torch.Tensor]:
    """Model inputs and `labels` of shape (rows, tokens), padded right; see `collate_training`."""
    import torch

    rows = [[row] if isinstance(row, TrainingExample) else list(row) for row in examples]
    spans = [conversation_spans(row, processor) for row in rows]
    texts = ["".join(span.text for span in row) for row in spans]
    pictures = [[open_image(image) for image in _images_of(row)] for row in rows]
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        # Pads are masked and unlabelled, so any token does.
        tokenizer.pad_token = tokenizer.eos_token
    adds_beginning = adds_special_tokens(processor, texts[0])
    features = processor(
        text=list(texts),
        images=pictures if any(pictures) else None,
        padding=True,
        padding_side="right",
        return_tensors="pt",
        add_special_tokens=adds_beginning,
    )
    inputs: dict[str, torch.Tensor] = {name: value for name, value in features.items() if hasattr(value, "to")}
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for number, (row, length) in enumerate(zip(spans, inputs["attention_mask"].sum(dim=1).tolist(), strict=True)):
        if context is not None and length > context:
            first = rows[number][0].request.sample_id
            raise SampleModelError(f"training row {first}: {length} tokens, and the model's context is {context}")
        for start, end in learnt_ranges(row, processor, adds_beginning=adds_beginning):
            # Counted from the end: placeholders of images become many tokens, and stand before every answer.
            place = slice(length + start, length + end)
            labels[number, place] = inputs["input_ids"][number, place]
    return {**inputs, "labels": labels}


def conversation_spans(row: Sequence[TrainingExample], processor: ProcessorMixin) -> list[Span]:
    """The text of a row in parts: prompts and template to be read, answers with their end of turn to be learnt."""
    spans: list[Span] = []
    messages: list[Message] = []
    closed = ""
    for number, example in enumerate(row):
        check_text(processor, example.answer, f"sample {example.request.sample_id}: the answer")
        # The image and the system's text were said in the first turn.
        asked = [m for m in example.request.messages if number == 0 or m.role != "system"]
        messages += [m if number == 0 else Message(m.role, m.text) for m in asked]
        prompt = render(processor, messages, is_open=True)
        if not prompt.startswith(closed):
            raise _not_continued(example)
        messages.append(Message("assistant", example.answer))
        full = render(processor, messages, is_open=False)
        if not full.startswith(prompt):
            raise _not_continued(example)
        answer, rest = _split_at_turn_end(full[len(prompt) :], str(processor.tokenizer.eos_token))
        between = prompt[len(closed) :]
        spans += [Span(between, is_learnt=False), Span(answer, is_learnt=True)]
        if number < len(row) - 1:
            spans.append(Span(rest, is_learnt=False))
        closed = full
    return spans


def learnt_ranges(spans: Sequence[Span], processor: ProcessorMixin, *, adds_beginning: bool) -> list[tuple[int, int]]:
    """Token ranges of the learnt parts, as negative distances from the end of the row (the end itself is 0)."""
    prefixes = [""]
    for span in spans:
        prefixes.append(prefixes[-1] + span.text)
    encoded = processor.tokenizer(prefixes[1:], add_special_tokens=adds_beginning)["input_ids"]
    whole = encoded[-1]
    places = [0, *(_shared_length(tokens, whole) for tokens in encoded)]
    return [
        (places[number] - len(whole), places[number + 1] - len(whole))
        for number, span in enumerate(spans)
        if span.is_learnt
    ]


def _shared_length(tokens: Sequence[int], whole: Sequence[int]) -> int:
    """How many first tokens agree: a prefix may end in tokens that merge with what follows (or in an added end)."""
    for place, (one, other) in enumerate(zip(tokens, whole, strict=False)):
        if one != other:
            return place
    return min(len(tokens), len(whole))


def _split_at_turn_end(text: str, ending: str) -> tuple[str, str]:
    """Answer with its end of turn, and what the template writes after it."""
    place = text.find(ending)
    if place >= 0:
        return text[: place + len(ending)], text[place + len(ending) :]
    # Some published templates write no end of turn: a model trained so would never stop.
    stripped = text.rstrip()
    return stripped + ending, text[len(stripped) :]


def _images_of(row: Sequence[TrainingExample]) -> tuple[Image, ...]:
    images = row[0].request.images
    for example in row[1:]:
        if [image.id for image in example.request.images] != [image.id for image in images]:
            raise ValueError(f"sample {example.request.sample_id} shares a sequence with samples of another image")
    return images


def _not_continued(example: TrainingExample) -> SampleModelError:
    return SampleModelError(
        f"sample {example.request.sample_id}: the model's chat template does not write an answered question as its "
        "prompt followed by the answer, so where the answer lies cannot be told"
    )
