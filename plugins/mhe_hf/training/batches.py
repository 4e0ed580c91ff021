"""From training examples to padded batches; each row is prepared once, kept while memory allows, and only padded after.

Preparing (reading and resizing the image, rendering and tokenising the conversation) costs more than a step of a
small model, and gives the same tensors every epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from mhe import SampleError, SampleModelError, UserError, digest_of
from mhe_hf import collate_training, join_training
from mhe_hf.training.watching import EXAMPLE_INDEX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig, ProcessorMixin

    from mhe import TrainingExample

CACHE_BYTES = 2 << 30

Row = tuple["TrainingExample", ...]
"""Questions of one image that share a sequence."""
Item = tuple[int, Row]
"""A row with the index of its first example."""
Key = tuple[int, ...]
Features = dict[str, torch.Tensor]


class Rows(Dataset[Item]):
    """Rows of a training: one example each, or several questions of one image in turn."""

    def __init__(self, examples: Sequence[TrainingExample], questions_per_row: int = 1, seed: int = 0) -> None:
        self._examples = tuple(examples)
        self._rows = group_by_image(examples, questions_per_row, seed)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item:
        row = self._rows[index]
        return row[0], tuple(self._examples[number] for number in row)


def group_by_image(examples: Sequence[TrainingExample], at_most: int, seed: int) -> list[list[int]]:
    """Indices of examples, in rows of at most `at_most` that ask about the same images.

    The questions of an image are shuffled by `seed` before they are laid into rows.
    """
    if at_most == 1:
        return [[number] for number in range(len(examples))]
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for number, example in enumerate(examples):
        key = tuple((image.id, image.source.digest()) for image in example.request.images)
        groups.setdefault(key, []).append(number)
    rows = []
    for numbers in groups.values():
        numbers.sort(key=lambda number: digest_of([seed, examples[number].sample.id, number]))
        rows += [numbers[start : start + at_most] for start in range(0, len(numbers), at_most)]
    return rows


class RowCollator:
    """Called by the `Trainer` with rows; returns model inputs, labels, and the index that names each row."""

    def __init__(self, processor: ProcessorMixin, context: int | None = None) -> None:
        self._processor = processor
        self._context = context
        self._kept: dict[Key, Features] = {}
        self._divided: dict[Key, list[Row]] = {}
        self._room = CACHE_BYTES

    def __call__(self, rows: Sequence[Item]) -> Features:
        """A batch, padded right. Raises `UserError` for an example that cannot be read or does not fit."""
        fitting = [part for _, examples in rows for part in self._parts(examples)]
        batch = join_training(
            [self._kept.get(_key(part)) or self._collate([part]) for part in fitting], self._processor
        )
        if batch is None:
            # Some families lay images of one batch out together (tiles padded to the most): theirs to do.
            batch = self._collate(fitting)
        batch[EXAMPLE_INDEX] = torch.tensor([index for index, _ in rows])
        return batch

    def _parts(self, examples: Row) -> list[Row]:
        """The row, or its halves where its questions do not fit the model's context together; prepared and kept."""
        key = _key(examples)
        if key in self._divided:
            return self._divided[key]
        parts = [examples]
        try:
            features = dict(collate_training([examples], self._processor, context=self._context))
        except SampleModelError as error:
            if len(examples) == 1:
                raise _unusable(examples, error) from None
            half = len(examples) // 2
            parts = [*self._parts(examples[:half]), *self._parts(examples[half:])]
        except SampleError as error:
            raise _unusable(examples, error) from None
        else:
            self._keep(key, features)
        self._divided[key] = parts
        return parts

    def _keep(self, key: Key, features: Features) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in features.values())
        if size <= self._room:
            self._room -= size
            self._kept[key] = features

    def _collate(self, rows: Sequence[Row]) -> Features:
        return dict(collate_training(rows, self._processor, context=self._context))


def _key(row: Row) -> Key:
    # Examples hold dictionaries, so they cannot be keys themselves; the job keeps them all alive.
    return tuple(id(example) for example in row)


def _unusable(examples: Row, error: SampleError) -> UserError:
    ids = ", ".join(example.sample.id for example in examples)
    return UserError(
        f"training sample {ids}: {error}\nMend it, or list it under `broken` in the task's task.yaml to leave it out."
    )


def context_of(configuration: PreTrainedConfig) -> int | None:
    """The model's context in tokens; None where its configuration names none."""
    text = configuration.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
