"""What a reader of a data set promises."""

from __future__ import annotations

import pickle
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.errors import SampleDataError, UserError
from mhe.protocols import ReadContext
from mhe.testing.contracts.promises import check_options, promise
from mhe.values import Image, Sample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mhe.protocols import DatasetReader, DatasetReaderFactory


def check_reader(
    factory: DatasetReaderFactory,
    options: Mapping[str, object] | None = None,
    *,
    split: str = "test",
    data_dir: Path | None = None,
    opened: int = 3,
) -> list[Sample]:
    """Ids are unique, samples complete, a second reading and a limit give the same ones, images can be had.

    `split` is the reader's own name of one; `data_dir` a small release in the published layout, None for a reader
    that makes its samples. `opened` images are read. Returns the samples. Raises `AssertionError` with the broken
    promise.
    """
    reader = factory(check_options(factory, options))
    samples = list(reader.read(ReadContext(split, data_dir, offline=True)))
    promise(samples, f"the reader gave no sample of split {split!r}")
    for sample in samples:
        _check_sample(sample)
    doubled = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    promise(not doubled, f"ids stand more than once: {doubled[:5]}")
    _check_images(samples, opened)
    _check_again(reader, samples, ReadContext(split, data_dir, offline=True))
    if data_dir is not None:
        _check_absent(reader, split)
    return samples


def _check_sample(sample: object) -> None:
    if not isinstance(sample, Sample):
        raise AssertionError(f"the reader gave {type(sample).__name__}, not Sample")
    what = f"sample {sample.id!r}"
    promise(isinstance(sample.id, str) and sample.id, f"{what}: an id is a text that is not empty")
    promise(isinstance(sample.references, tuple) and sample.references, f"{what}: references is a tuple, never empty")
    promise(all(isinstance(text, str) for text in sample.references), f"{what}: a reference is no text")
    promise(isinstance(sample.images, tuple), f"{what}: images is a tuple")
    promise(all(isinstance(image, Image) for image in sample.images), f"{what}: an image is no mhe.Image")
    promise(sample.question is None or sample.question.strip(), f"{what}: a question is None or has text")
    promise(sample.answer_type in (None, "closed", "open"), f"{what}: answer_type {sample.answer_type!r}")
    promise(
        all(isinstance(text, str) for pair in sample.groups.items() for text in pair),
        f"{what}: groups map texts to texts, found {dict(sample.groups)!r}",
    )


def _check_images(samples: list[Sample], opened: int) -> None:
    images = {image.id: image for sample in samples for image in sample.images}
    for image in list(images.values())[:opened]:
        source = pickle.loads(pickle.dumps(image.source))  # noqa: S301 - written a moment ago
        try:
            promise(source.read(), f"image {image.id!r}: no bytes")
        except SampleDataError as error:
            raise AssertionError(f"image {image.id!r} cannot be read: {error}") from error
        digest = image.source.digest()
        promise(len(digest) == 64 and set(digest) <= set("0123456789abcdef"), f"image {image.id!r}: digest {digest!r}")
        promise(source.digest() == digest, f"image {image.id!r}: its digest changes from call to call")


def _check_again(reader: DatasetReader, samples: list[Sample], context: ReadContext) -> None:
    from dataclasses import replace

    ids = [sample.id for sample in samples]
    again = [sample.id for sample in reader.read(context)]
    promise(again == ids, "a second reading gives other samples or another order")
    some = max(1, len(ids) // 2)
    limited = [sample.id for sample, _ in zip(reader.read(replace(context, limit=some)), range(some), strict=False)]
    promise(limited == ids[:some], f"with limit={some} the samples are not the first {some} of the split")
    texts = [sample.id for sample in reader.read(replace(context, need_images=False))]
    promise(texts == ids, "need_images=False gives other samples")


def _check_absent(reader: DatasetReader, split: str) -> None:
    with tempfile.TemporaryDirectory() as empty:
        for folder in (None, Path(empty)):
            try:
                found = list(reader.read(ReadContext(split, folder, offline=True)))
            except UserError:
                continue
            raise AssertionError(f"without data (data_dir={folder and 'an empty folder'}) it gave {len(found)} samples")
