"""One question and its answer as text, through a model's own chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import ProcessorMixin


def render_turn(processor: ProcessorMixin, prompt: str, answer: str | None = None) -> str:
    """Return a prompt about one image, open for the answer, or with it and the end of text where it is given."""
    user: dict[str, object] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
    turns = [user]
    if answer is not None:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    # The library's annotation knows only contents that are plain text.
    text = processor.apply_chat_template(
        turns,  # type: ignore[arg-type]
        tokenize=False,
        add_generation_prompt=answer is None,
    )
    return str(text)
