"""From messages to the text that a model reads, through the chat template of its own processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from mhe import SampleModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import ProcessorMixin

    from mhe import Message

_control_tokens: WeakKeyDictionary[ProcessorMixin, tuple[str, ...]] = WeakKeyDictionary()
"""Asked for with every prompt, and the same for each."""


def render(processor: ProcessorMixin, messages: Sequence[Message], *, is_open: bool) -> str:
    """Messages as text; `is_open` ends it with the opening of the assistant's turn.

    Raises `SampleModelError` where a text holds one of the model's control tokens, or the template refuses the
    messages.
    """
    from jinja2 import TemplateError

    for message in messages:
        check_text(processor, message.text, f"the {message.role}'s text")
    conversation: list[dict[str, Any]] = [
        {
            "role": message.role,
            "content": [*({"type": "image"} for _ in range(message.images)), {"type": "text", "text": message.text}],
        }
        for message in messages
    ]
    try:
        text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=is_open)
    except TemplateError as error:
        raise SampleModelError(f"the model's chat template refuses the messages: {error}") from None
    return str(text)


def check_text(processor: ProcessorMixin, text: str, where: str) -> None:
    """Raise `SampleModelError` for a control token, which would be read as a command, or `<image>` as a picture."""
    found = [token for token in control_tokens(processor) if token in text]
    if found:
        raise SampleModelError(f"{where} holds {found[0]!r}, a control token of this model, which is not read as text")


def control_tokens(processor: ProcessorMixin) -> tuple[str, ...]:
    """Texts that the tokenizer reads as commands: special tokens and placeholders of images."""
    known = _control_tokens.get(processor)
    if known is None:
        tokenizer = processor.tokenizer
        names = ("image_token", "video_token", "audio_token")
        places = [getattr(processor, name, None) for name in names]
        # Some processors keep a token with its flags.
        every = {token if isinstance(token, str) else getattr(token, "content", "") for token in places if token}
        every |= set(tokenizer.all_special_tokens)
        known = tuple(sorted(token for token in every if token.strip()))
        _control_tokens[processor] = known
    return known


def adds_special_tokens(processor: ProcessorMixin, text: str) -> bool:
    """Whether the tokenizer must add its own beginning: not where the template wrote it already."""
    beginning = processor.tokenizer.bos_token
    return not (isinstance(beginning, str) and text.startswith(beginning))
