"""All turns of an image in one sequence, as if each were asked alone.

The prefix (the user's opening and the image) is written once; every turn after it sees the prefix and itself, and
its positions start where the prefix ends. Each turn's loss is therefore that of a conversation of its own, at a
fraction of the cost: the image tokens are computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mhe_tiny.lessons import Lesson

IGNORED = -100

Tokens = list[int]


@dataclass(frozen=True, slots=True)
class Turn:
    """Token ids of one turn."""

    prefix: Tokens
    """What all turns of the image share."""
    body: Tokens
    """The rest of the prompt."""
    answer: Tokens
    """The answer with the token that ends it."""


Encode = Callable[[str, str], Turn]
"""From a prompt and its answer to tokens."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of b images; t is the longest packed sequence."""

    tokens: torch.Tensor
    """(b, t)."""
    labels: torch.Tensor
    """(b, t): the answers' tokens, -100 elsewhere."""
    weights: torch.Tensor
    """(b, t): 1 / length of the answer at its tokens, 0 elsewhere, so that "yes" counts as much as a caption."""
    positions: torch.Tensor
    """(b, t)."""
    blocks: torch.Tensor
    """(b, t): 0 in the prefix, 1 and up in the turns, -1 in the padding."""
    visible: torch.Tensor
    """(b, 1, t, t): True where a row may look at a column."""


class Packer:
    """Turns lessons into batches with a model's own way to write a turn."""

    def __init__(self, encode: Encode, pad: int) -> None:
        self._encode = encode
        self._pad = pad
        self._known: dict[tuple[str, str], Turn] = {}

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
        return Batch(
            tokens=column(0, self._pad),
            labels=column(1, IGNORED),
            weights=torch.where(lengths > 0, 1 / lengths.clamp(min=1), 0.0),
            positions=column(2, 0),
            blocks=blocks,
            visible=visible[:, None],
        )

    def _row(self, lesson: Lesson) -> tuple[Tokens, ...]:
        """Tokens, labels, positions, blocks (0: prefix, 1 and up: turns) and answer lengths of one lesson."""
        prefix = self._turn(*lesson.turns[0]).prefix
        tokens, labels = list(prefix), [IGNORED] * len(prefix)
        positions, blocks, lengths = list(range(len(prefix))), [0] * len(prefix), [0] * len(prefix)
        for number, (prompt, said) in enumerate(lesson.turns, start=1):
            turn = self._turn(prompt, said)
            tokens += turn.body + turn.answer
            labels += [IGNORED] * len(turn.body) + turn.answer
            lengths += [0] * len(turn.body) + [len(turn.answer)] * len(turn.answer)
            length = len(turn.body) + len(turn.answer)
            positions += range(len(prefix), len(prefix) + length)
            blocks += [number] * length
        return tokens, labels, positions, blocks, lengths

    def _turn(self, prompt: str, answer: str) -> Turn:
        key = (prompt, answer)
        if key not in self._known:
            self._known[key] = self._encode(prompt, answer)
        return self._known[key]


def weigh_answers(head: nn.Module, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the mean cross-entropy over answers; the head is applied to the rows of their tokens alone.

    `hidden` is (b, t, width), what the head reads.
    """
    from torch.nn.functional import cross_entropy

    targets = batch.labels[:, 1:]
    asked = targets != IGNORED
    losses = cross_entropy(head(hidden[:, :-1][asked]), targets[asked], reduction="none")
    weights = batch.weights[:, 1:][asked]
    return (losses * weights).sum() / weights.sum()
