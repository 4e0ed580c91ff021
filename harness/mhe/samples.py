"""Samples of a task: found, read, checked, cut to the subset and limit asked for, and digested."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.digests import digest_of
from mhe.documents.base import parse_options
from mhe.documents.run import DataRecord
from mhe.errors import DocumentError, UnknownNameError, UserError
from mhe.protocols import ReadContext
from mhe.subsets import draw_subset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.catalog import Catalog
    from mhe.documents.task import TaskSpec
    from mhe.protocols import DatasetReader
    from mhe.values import Sample


@dataclass(frozen=True, slots=True)
class SampleSet:
    """The samples of a run, and the record of which they are."""

    task: TaskSpec
    split: str
    samples: Sequence[Sample]
    record: DataRecord
    data_dir: Path | None


def find_data_dir(task: TaskSpec, data_dir: Path | None) -> Path | None:
    """`data_dir`, else `$MHE_DATA_DIR/<folder>`, else `./data/<folder>`; None where none exists.

    Raises `UserError` for a `data_dir` that is given and is no folder.
    """
    if data_dir is not None:
        if not data_dir.is_dir():
            raise UserError(f"--data-dir {data_dir}: no such folder.")
        return data_dir
    folder = task.source.folder
    if not folder:
        return None
    roots = [Path(os.environ["MHE_DATA_DIR"])] if os.environ.get("MHE_DATA_DIR") else []
    for root in [*roots, Path("data")]:
        for name in dict.fromkeys([folder, folder.replace("-", "_"), folder.replace("_", "-")]):
            if (root / name).is_dir():
                return root / name
    return None


def open_reader(catalog: Catalog, task: TaskSpec, options: Mapping[str, object] | None = None) -> DatasetReader:
    """The task's reader with its options. Raises `DocumentError` for options that the reader does not know."""
    factory = catalog.reader(task.reader.name)
    chosen = {**task.reader.options, **(options or {})}
    return factory(parse_options(factory.Options, chosen, f"task {task.name}, reader.options"))


def load_samples(
    catalog: Catalog,
    task: TaskSpec,
    *,
    split: str | None = None,
    limit: int | None = None,
    data_dir: Path | None = None,
    offline: bool = False,
    need_images: bool = True,
    options: Mapping[str, object] | None = None,
) -> SampleSet:
    """Read the samples of a split, in the publisher's order.

    Without `need_images` the digest is over ids, questions and references alone, and says so by its prefix, so
    that predictions can be scored where the images are not. Raises `UnknownNameError` for a split the task does
    not have, `DataMissingError`, and `DocumentError` for doubled ids or samples without a reference.
    """
    split = split or task.default_split
    if split not in task.splits:
        raise UnknownNameError("split", split, task.splits, hint=f"(of task {task.name})")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: give 1 or more, or leave it out for the whole split.")
    subset = task.subset if task.subset and task.subset.split == split else None
    folder = find_data_dir(task, data_dir)
    context = ReadContext(
        split=task.splits[split].reader_split or split,
        data_dir=folder,
        hub=task.source.hub,
        revision=task.source.revision,
        offline=offline,
        # A subset is drawn from the whole split, whatever part of it is wanted.
        limit=None if subset else limit,
        need_images=need_images,
    )
    samples = []
    for sample in open_reader(catalog, task, options).read(context):
        if task.references.lowercase:
            sample = replace(sample, references=tuple(text.lower() for text in sample.references))  # noqa: PLW2901
        samples.append(sample)
        if context.limit is not None and len(samples) >= context.limit:
            break
    _check_samples(task, split, samples)
    if subset:
        samples = draw_subset(samples, subset)
    subset_ids = tuple(sample.id for sample in samples) if subset else None
    samples = samples[:limit] if limit is not None else samples
    record = DataRecord(
        task=task.key,
        split=split,
        digest=samples_digest(samples, with_images=need_images),
        samples=len(samples),
        images=len({image.id for sample in samples for image in sample.images}),
        limit=limit,
        subset_ids=subset_ids,
        place=_place(task, folder),
    )
    return SampleSet(task=task, split=split, samples=samples, record=record, data_dir=folder)


def _place(task: TaskSpec, folder: Path | None) -> str:
    if folder is not None:
        return "local"
    return f"hub:{task.source.hub}@{task.source.revision}" if task.source.hub else "generated"


def _check_samples(task: TaskSpec, split: str, samples: Sequence[Sample]) -> None:
    problems = []
    if not samples:
        problems.append("the split holds no sample")
    doubled = [name for name, count in Counter(sample.id for sample in samples).items() if count > 1]
    problems += [f"the id {name!r} stands more than once" for name in doubled[:10]]
    problems += [f"sample {sample.id!r} has no reference" for sample in samples if not sample.references][:10]
    if problems:
        raise DocumentError(f"task {task.name}, split {split}", problems)


def samples_digest(samples: Sequence[Sample], *, with_images: bool = True) -> str:
    """Digest over ids, questions, references, answer types and image contents, in order."""
    content = [
        [
            sample.id,
            sample.question,
            list(sample.references),
            sample.answer_type,
            [image.source.digest() if with_images else image.id for image in sample.images],
        ]
        for sample in samples
    ]
    return digest_of(content) if with_images else f"text-only:{digest_of(content)}"


def read_samples(
    task: str,
    split: str,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    offline: bool = False,
    options: Mapping[str, object] | None = None,
) -> list[Sample]:
    """Samples of a task by its name, for plugins and notebooks; `options` override the reader's."""
    from mhe.catalog import open_catalog

    catalog = open_catalog()
    found = load_samples(
        catalog,
        catalog.task(task),
        split=split,
        limit=limit,
        data_dir=data_dir,
        offline=offline,
        need_images=False,
        options=options,
    )
    return list(found.samples)
