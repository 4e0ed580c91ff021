"""The text that a model reads, from the messages that a task makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_hf.families import family_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import ProcessorMixin

    from mhe import Message, Request


def render_prompt(processor: ProcessorMixin, messages: Sequence[Message]) -> str:
    """The prompt up to where the model's answer begins; empty for a captioner without a prefix.

    Raises `SampleModelError` where a text holds one of the model's control tokens (it would be read as a command,
    `<image>` as a picture), or the family or its chat template refuses the messages.
    """
    return family_of(processor).render(processor, messages)


def shown_prompt(processor: ProcessorMixin, request: Request) -> str | None:
    """What `render_prompt` gives for the request; None where the model is shown the image alone."""
    text = render_prompt(processor, request.messages)
    return text if text or family_of(processor).reads_questions else None
