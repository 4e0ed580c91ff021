"""From training examples to padded batches; each row is prepared once, kept while memory allows, and only padded after.

Preparing (reading and resizing the image, rendering and tokenising the conversation) costs more than a step of a
small model, and gives the same tensors every epoch. The new rows of a batch are prepared in one call where each can
be cut out of the result as it would be alone, which is far less work than a call for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.data import Dataset

from mhe import SampleError, SampleModelError, UserError, digest_of
from mhe_hf import collate_training, join_training
from mhe_hf.families import family_of
from mhe_hf.training.watching import EXAMPLE_INDEX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import ProcessorMixin

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
        self._can_cut = True

    def __call__(self, rows: Sequence[Item]) -> Features:
        """A batch, padded right. Raises `UserError` for an example that cannot be read or does not fit."""
        ready = self._together([examples for _, examples in rows])
        fitting = [part for _, examples in rows for part in self._parts(examples, ready)]
        batch = join_training([ready.get(_key(part)) or self._kept[_key(part)] for part in fitting], self._processor)
        if batch is None:
            # Some families lay images of one batch out together (tiles padded to the most): theirs to do.
            batch = self._collate(fitting)
        batch[EXAMPLE_INDEX] = torch.tensor([index for index, _ in rows])
        return batch

    def _together(self, rows: Sequence[Row]) -> dict[Key, Features]:
        """Those of the rows that are not kept, prepared in one call; none where that cannot be."""
        parts = [part for row in rows for part in self._divided.get(_key(row), [row])]
        missing = {_key(part): part for part in parts if _key(part) not in self._kept}
        if len(missing) < 2 or not self._can_cut:
            return {}
        try:
            features = self._collate(list(missing.values()))
        except SampleError:
            # Of one of them, and which will be seen.
            return {}
        cut = cut_rows(features, family_of(self._processor).fills, len(missing))
        self._can_cut = cut is not None
        return dict(zip(missing, cut or (), strict=False))

    def _parts(self, examples: Row, ready: dict[Key, Features]) -> list[Row]:
        """The row, or its halves where its questions do not fit the model's context together.

        Each part is in `ready` or kept afterwards.
        """
        key = _key(examples)
        if key in self._divided and self._divided[key] != [examples]:
            return [part for half in self._divided[key] for part in self._parts(half, ready)]
        if key not in self._kept:
            try:
                if key not in ready:
                    ready[key] = self._collate([examples])
            except SampleModelError as error:
                if len(examples) == 1:
                    raise _unusable(examples, error) from None
                half = len(examples) // 2
                self._divided[key] = [
                    *self._parts(examples[:half], ready),
                    *self._parts(examples[half:], ready),
                ]
                return self._divided[key]
            except SampleError as error:
                raise _unusable(examples, error) from None
            self._keep(key, ready[key])
        self._divided[key] = [examples]
        return self._divided[key]

    def _keep(self, key: Key, features: Features) -> None:
        size = sum(tensor.numel() * tensor.element_size() for tensor in features.values())
        if size <= self._room:
            self._room -= size
            self._kept[key] = features

    def _collate(self, rows: Sequence[Row]) -> Features:
        return dict(collate_training(rows, self._processor, context=self._context))


def cut_rows(features: Features, fills: Mapping[str, int], count: int) -> list[Features] | None:
    """The `count` rows of padded features, each as it would be alone; None where that cannot be told.

    It can where a row has one picture of one size for all, (rows, channels, height, width), and text in `fills`, which
    masks say the length of. Tiles and patches depend on the neighbours, or do not tell whose they are.
    """
    pictures = [name for name in features if name not in fills]
    if pictures not in ([], ["pixel_values"]) or any(features[name].ndim != 4 for name in pictures):
        return None
    if any(len(tensor) != count for tensor in features.values()):
        return None
    masks = {name: _mask_of(name, features) for name in features if name in fills}
    if any(mask not in features for mask in masks.values()):
        return None
    lengths = {mask: features[mask].sum(dim=1).tolist() for mask in set(masks.values())}
    return [
        {
            # Copied, so that a row that is kept keeps no other.
            name: (
                tensor[row : row + 1, : lengths[masks[name]][row]] if name in masks else tensor[row : row + 1]
            ).clone()
            for name, tensor in features.items()
        }
        for row in range(count)
    ]


def _mask_of(name: str, features: Features) -> str:
    """What tells how long each row of a text is."""
    is_decoders = name.startswith("decoder_") or name == "labels"
    return "decoder_attention_mask" if is_decoders and "decoder_attention_mask" in features else "attention_mask"


def _key(row: Row) -> Key:
    # Examples hold dictionaries, so they cannot be keys themselves; the job keeps them all alive.
    return tuple(id(example) for example in row)


def _unusable(examples: Row, error: SampleError) -> UserError:
    ids = ", ".join(example.sample.id for example in examples)
    return UserError(
        f"training sample {ids}: {error}\nMend it, or list it under `broken` in the task's task.yaml to leave it out."
    )
