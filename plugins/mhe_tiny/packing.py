"""All turns of an image in one sequence, as if each were asked alone.

The prefix (the user's opening and the image) is written once; every turn after it sees the prefix and itself, and
its positions start where the prefix ends. Each turn's loss is therefore that of a conversation of its own, at a
fraction of the cost: the image tokens are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe_tiny.turns import render_turn

if TYPE_CHECKING:
    import torch
    from transformers import LlavaProcessor

    from mhe_tiny.lessons import Lesson

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of b images; t is the longest packed sequence."""

    pixels: torch.Tensor
    """(b, 3, height, width), as the processor makes them."""
    tokens: torch.Tensor
    """(b, t)."""
    labels: torch.Tensor
    """(b, t): the answers' tokens, -100 elsewhere."""
    weights: torch.Tensor
    """(b, t): 1 / length of the answer at its tokens, 0 elsewhere, so that "yes" counts as much as a caption."""
    positions: torch.Tensor
    """(b, t)."""
    visible: torch.Tensor
    """(b, 1, t, t): True where a row may look at a column."""


class Packer:
    """Turns lessons into batches with a model's own processor and chat template."""

    def __init__(self, processor: LlavaProcessor, image_tokens: int) -> None:
        self._processor = processor
        self._tokenizer = processor.tokenizer
        self._image = self._tokenizer.convert_tokens_to_ids(processor.image_token)
        self._image_tokens = image_tokens
        self._known: dict[tuple[str, str], tuple[list[int], list[int], list[int]]] = {}

    def pack(self, lessons: Sequence[Lesson]) -> Batch:
        """Return the batch of these lessons."""
        import torch

        rows = [self._row(lesson) for lesson in lessons]
        length = max(len(row[0]) for row in rows)

        def column(index: int, filler: int) -> torch.Tensor:
            return torch.tensor([row[index] + [filler] * (length - len(row[index])) for row in rows])

        blocks, lengths = column(3, -1), column(4, 0)
        same = blocks[:, None, :] == blocks[:, :, None]
        earlier = torch.ones(length, length, dtype=torch.bool).tril()
        visible = ((blocks[:, None, :] == 0) | same) & earlier
        pictures = self._processor.image_processor([lesson.open() for lesson in lessons], return_tensors="pt")
        return Batch(
            pixels=pictures["pixel_values"],
            tokens=column(0, self._tokenizer.pad_token_id),
            labels=column(1, IGNORED),
            weights=torch.where(lengths > 0, 1 / lengths.clamp(min=1), 0.0),
            positions=column(2, 0),
            visible=visible[:, None],
        )

    def _row(self, lesson: Lesson) -> tuple[list[int], ...]:
        """Tokens, labels, positions, blocks (0: prefix, 1 and up: turns) and answer lengths of one lesson."""
        prefix = self._encode(*lesson.turns[0])[0]
        tokens, labels = list(prefix), [IGNORED] * len(prefix)
        positions, blocks, lengths = list(range(len(prefix))), [0] * len(prefix), [0] * len(prefix)
        for number, turn in enumerate(lesson.turns, start=1):
            _, body, answer = self._encode(*turn)
            tokens += body + answer
            labels += [IGNORED] * len(body) + answer
            lengths += [0] * len(body) + [len(answer)] * len(answer)
            length = len(body) + len(answer)
            positions += range(len(prefix), len(prefix) + length)
            blocks += [number] * length
        return tokens, labels, positions, blocks, lengths

    def _encode(self, prompt: str, answer: str) -> tuple[list[int], list[int], list[int]]:
        """Prefix up to the last image token, rest of the prompt, and answer with its end, as token ids."""
        key = (prompt, answer)
        if key not in self._known:
            opened = self._tokens_of(render_turn(self._processor, prompt))
            whole = self._tokens_of(render_turn(self._processor, prompt, answer))
            if whole[: len(opened)] != opened:
                raise ValueError(f"the chat template does not continue the prompt {prompt!r}")
            at = opened.index(self._image)
            prefix = opened[:at] + [self._image] * self._image_tokens
            self._known[key] = (prefix, opened[at + 1 :], whole[len(opened) :])
        return self._known[key]

    def _tokens_of(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)
