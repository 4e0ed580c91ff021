"""Training inputs made the way evaluation makes prompts, with labels on the answers only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_hf.families import family_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from transformers import ProcessorMixin

    from mhe import TrainingExample


def collate_training(
    examples: Sequence[TrainingExample | Sequence[TrainingExample]],
    processor: ProcessorMixin,
    *,
    context: int | None = None,
) -> dict[str, torch.Tensor]:
    """Inputs of the model's `forward` with `labels` of shape (rows, tokens), padded right.

    A row is one example, or several of one image in turn; families without conversations lay each into a row of its
    own. Labels are the tokens of each answer and of the end of its turn, and -100 elsewhere. Raises
    `SampleModelError` for a row longer than `context` tokens, `SampleDataError` for an image that cannot be read.
    """
    return family_of(processor).collate_training(examples, processor, context)


def join_training(
    prepared: Sequence[Mapping[str, torch.Tensor]], processor: ProcessorMixin
) -> dict[str, torch.Tensor] | None:
    """Several results of `collate_training` as one: what runs along tokens is padded right to the longest.

    None where images of one batch must be laid out together (tiles padded to the most): collate them at once.
    """
    import torch

    fills = family_of(processor).fills
    joined: dict[str, torch.Tensor] = {}
    if any(features.keys() != prepared[0].keys() for features in prepared):
        return None
    for name in prepared[0]:
        parts = [features[name] for features in prepared]
        if name in fills and parts[0].ndim > 1:
            longest = max(part.shape[1] for part in parts)
            parts = [_padded(part, longest, fills[name]) for part in parts]
        if len({part.shape[1:] for part in parts}) > 1:
            return None
        joined[name] = torch.cat(parts)
    return joined


def _padded(part: torch.Tensor, length: int, fill: int) -> torch.Tensor:
    import torch

    if part.shape[1] == length:
        return part
    return torch.cat([part, part.new_full((part.shape[0], length - part.shape[1], *part.shape[2:]), fill)], dim=1)
