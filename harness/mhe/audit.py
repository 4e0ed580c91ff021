"""What the splits of a task share: images, near-duplicates, questions with their answers.

A test image that was trained on makes a test score a memory test. The published splits of some data sets share
images; a task says so in `shared_images`, and the audit tells whether what it finds was declared.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from mhe.documents.base import Part
from mhe.errors import DataMissingError, UnknownNameError
from mhe.image_hashes import key_of, near_pairs, near_pairs_within, read_facts
from mhe.images import FileSource
from mhe.samples import load_samples
from mhe.training_data import normalised_question

if TYPE_CHECKING:
    from mhe.catalog import Catalog
    from mhe.documents.task import TaskSpec
    from mhe.image_hashes import ImageFacts
    from mhe.samples import SampleSet
    from mhe.values import Image, Sample

THRESHOLD = 4
"""Bits of 64 in which near-duplicates may differ.

Measured on VQA-RAD: stored again at JPEG quality 60, or at half size, an image moved by at most 4 bits; of all pairs of
its 315 images, none was nearer than 10.
"""
EXAMPLES = 10


class SplitCounts(Part):
    """One split, counted."""

    samples: int = 0
    images: int = 0
    """Distinct image names."""
    expected_samples: int | None = None
    """What task.yaml says."""
    groups: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Group to value to number of samples."""
    answer_types: dict[str, int] = Field(default_factory=dict)
    missing: str | None = None
    """Why the split could not be read; then nothing else is counted."""


class NearPair(Part):
    """Two images whose perceptual hashes differ in few bits."""

    first: str
    second: str
    distance: int


class SharedBetweenSplits(Part):
    """What two splits have in common."""

    splits: tuple[str, str]
    images: int
    """Distinct images that are in both, byte for byte (or by name, see `AuditReport.compared_by`)."""
    images_of: tuple[int, int]
    """Distinct images of the first and of the second split."""
    samples: tuple[int, int]
    """Samples of the first and of the second split that show one of these images."""
    near_images: tuple[int, int]
    """Further images of the first and of the second split with a near-duplicate in the other."""
    repeated_samples: int
    """Samples of the second split whose image, question and answer are in the first."""
    repeated_texts: int
    """Samples of the second split whose question and answer (or caption) are in the first, whatever the image."""
    declared: str | None
    """The reason that task.yaml gives for shared images; None where it declares none."""
    examples: tuple[str, ...] = ()
    """Names of shared images."""
    near_examples: tuple[NearPair, ...] = ()

    @property
    def is_undeclared(self) -> bool:
        """Whether images are shared and task.yaml does not say so."""
        return self.images > 0 and self.declared is None


class WithinSplit(Part):
    """What one split holds twice."""

    duplicate_images: int
    """Images beyond the first of each group that is the same byte for byte under several names."""
    near_pairs: int
    repeated_samples: int
    """Samples beyond the first with one image, question and answer."""
    contradictions: int
    """Questions on one image that have several different answers."""
    duplicate_examples: tuple[tuple[str, ...], ...] = ()
    near_examples: tuple[NearPair, ...] = ()


class AuditReport(Part):
    """All findings about the data of one task."""

    task: str
    """`name@version`."""
    place: str
    compared_by: str
    """`content`, or `name` where no image could be read."""
    threshold: int
    splits: dict[str, SplitCounts]
    shared: tuple[SharedBetweenSplits, ...]
    within: dict[str, WithinSplit]
    unreadable: dict[str, str]
    """Image name to reason."""
    unreferenced: tuple[str, ...]
    """Image files beside the referenced ones that no sample shows."""

    @property
    def undeclared(self) -> list[SharedBetweenSplits]:
        """Pairs of splits that share images without task.yaml saying so."""
        return [shared for shared in self.shared if shared.is_undeclared]


@dataclass(frozen=True, slots=True)
class _SplitData:
    """One split with what its images turned out to be."""

    name: str
    samples: Sequence[Sample]
    images: Mapping[str, Image]
    """By identity: the first image of each."""
    hashes: Mapping[str, int]
    """Identity to perceptual hash, where there is one."""
    identity: Callable[[Image], str]


def count_splits(
    catalog: Catalog,
    task: TaskSpec,
    *,
    data_dir: Path | None = None,
    offline: bool = False,
    splits: Sequence[str] | None = None,
) -> tuple[dict[str, SplitCounts], dict[str, SampleSet]]:
    """Counts of each split, and the samples of those that could be read; no image is opened.

    Raises `UnknownNameError` for a split that the task does not have, `DataMissingError` where none can be read.
    """
    for name in splits or ():
        if name not in task.splits:
            raise UnknownNameError("split", name, task.splits, hint=f"(of task {task.name})")
    counts: dict[str, SplitCounts] = {}
    found: dict[str, SampleSet] = {}
    first_error: DataMissingError | None = None
    for name in splits or task.splits:
        expected = task.splits[name].samples
        try:
            found[name] = load_samples(catalog, task, split=name, data_dir=data_dir, offline=offline, need_images=False)
        except DataMissingError as error:
            first_error = first_error or error
            counts[name] = SplitCounts(expected_samples=expected, missing=str(error).splitlines()[0])
            continue
        counts[name] = _count(found[name].samples, expected)
    if not found and first_error is not None:
        raise first_error
    return counts, found


def _count(samples: Sequence[Sample], expected: int | None) -> SplitCounts:
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        for group, value in sample.groups.items():
            groups[group][value] += 1
    types = Counter(sample.answer_type for sample in samples if sample.answer_type)
    return SplitCounts(
        samples=len(samples),
        images=len({image.id for sample in samples for image in sample.images}),
        expected_samples=expected,
        groups={name: dict(counter.most_common()) for name, counter in groups.items()},
        answer_types={str(name): number for name, number in types.most_common()},
    )


def audit(
    catalog: Catalog,
    task: TaskSpec,
    *,
    data_dir: Path | None = None,
    offline: bool = False,
    splits: Sequence[str] | None = None,
    threshold: int = THRESHOLD,
    progress: Callable[[str, int, int], None] | None = None,
) -> AuditReport:
    """Compare the splits of a task with each other and within themselves. Reads every image once.

    `threshold` is the number of bits in which near-duplicates may differ. Where not one image can be read, images are
    compared by name, and the report says so. Errors as in `count_splits`.
    """
    tell = progress or (lambda _phase, _done, _total: None)
    counts, found = count_splits(catalog, task, data_dir=data_dir, offline=offline, splits=splits)
    images = [image for part in found.values() for sample in part.samples for image in sample.images]
    facts = read_facts(images, lambda done, total: tell("reading images", done, total))
    are_absent = bool(facts) and all(fact.digest is None for fact in facts.values())
    parts = [_describe(name, part.samples, facts, by_name=are_absent) for name, part in found.items()]
    shared, within = [], {}
    pairs = list(combinations(parts, 2))
    for done, (first, second) in enumerate(pairs):
        tell("comparing splits", done, len(pairs) + len(parts))
        shared.append(_compare(first, second, task, threshold))
    for done, part in enumerate(parts):
        tell("comparing splits", len(pairs) + done, len(pairs) + len(parts))
        within[part.name] = _look_within(part, facts, threshold)
    unreadable = {image.id: problem for image in images if (problem := facts[key_of(image.source)].problem)}
    return AuditReport(
        task=task.key,
        place=next(iter(found.values())).record.place,
        compared_by="name" if are_absent else "content",
        threshold=threshold,
        splits=counts,
        shared=tuple(shared),
        within=within,
        unreadable={} if are_absent else dict(sorted(unreadable.items())),
        # Of a subset, nearly every file is left over, and so it is where only some splits were read.
        unreferenced=() if task.subset or len(found) < len(task.splits) else tuple(find_unreferenced(images)),
    )


def _describe(
    name: str, samples: Sequence[Sample], facts: Mapping[Hashable, ImageFacts], *, by_name: bool
) -> _SplitData:
    def identity(image: Image) -> str:
        # An image that cannot be read is like no other, but is itself again in the next sample.
        return (not by_name and facts[key_of(image.source)].digest) or f"name:{image.id}"

    images: dict[str, Image] = {}
    for sample in samples:
        for image in sample.images:
            images.setdefault(identity(image), image)
    hashes = {
        key: value for key, image in images.items() if (value := facts[key_of(image.source)].perceptual) is not None
    }
    return _SplitData(name, samples, images, hashes, identity)


def _compare(first: _SplitData, second: _SplitData, task: TaskSpec, threshold: int) -> SharedBetweenSplits:
    common = set(first.images) & set(second.images)
    near = _find_near(first, second, common, threshold)
    known_samples = {_key(sample, first) for sample in first.samples}
    known_texts = {_text(sample) for sample in first.samples}
    declared = next((item.reason for item in task.shared_images if set(item.splits) == {first.name, second.name}), None)
    return SharedBetweenSplits(
        splits=(first.name, second.name),
        images=len(common),
        images_of=(len(first.images), len(second.images)),
        samples=(_showing(first, common), _showing(second, common)),
        near_images=(len({pair[0] for pair in near}), len({pair[1] for pair in near})),
        repeated_samples=sum(_key(sample, second) in known_samples for sample in second.samples),
        repeated_texts=sum(_text(sample) in known_texts for sample in second.samples),
        declared=declared,
        examples=tuple(sorted(second.images[key].id for key in common)[:EXAMPLES]),
        near_examples=_near_examples(near, first, second),
    )


def _find_near(first: _SplitData, second: _SplitData, common: set[str], threshold: int) -> list[tuple[str, str, int]]:
    """Pairs of images that are not in both splits anyway."""
    import numpy as np

    left = [key for key in first.hashes if key not in common]
    right = [key for key in second.hashes if key not in common]
    pairs = near_pairs(
        np.array([first.hashes[key] for key in left], dtype=np.uint64),
        np.array([second.hashes[key] for key in right], dtype=np.uint64),
        threshold,
    )
    return [(left[i], right[j], distance) for i, j, distance in pairs]


def _near_examples(near: Iterable[tuple[str, str, int]], first: _SplitData, second: _SplitData) -> tuple[NearPair, ...]:
    ranked = sorted((distance, first.images[a].id, second.images[b].id) for a, b, distance in near)
    return tuple(NearPair(first=a, second=b, distance=distance) for distance, a, b in ranked[:EXAMPLES])


def _look_within(part: _SplitData, facts: Mapping[Hashable, ImageFacts], threshold: int) -> WithinSplit:
    import numpy as np

    names: dict[str, set[str]] = defaultdict(set)
    for sample in part.samples:
        for image in sample.images:
            if facts[key_of(image.source)].digest is not None:
                names[part.identity(image)].add(image.id)
    duplicates = sorted(tuple(sorted(group)) for group in names.values() if len(group) > 1)
    keys = list(part.hashes)
    hashes = np.array([part.hashes[key] for key in keys], dtype=np.uint64)
    near = [(keys[i], keys[j], distance) for i, j, distance in near_pairs_within(hashes, threshold)]
    seen = Counter(_key(sample, part) for sample in part.samples)
    answers: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for shown, question, answer in seen:
        if question:
            answers[shown, question].add(answer)
    return WithinSplit(
        duplicate_images=sum(len(group) - 1 for group in duplicates),
        near_pairs=len(near),
        repeated_samples=sum(number - 1 for number in seen.values()),
        contradictions=sum(len(found) > 1 for found in answers.values()),
        duplicate_examples=tuple(duplicates[:EXAMPLES]),
        near_examples=_near_examples(near, part, part),
    )


def _showing(part: _SplitData, images: set[str]) -> int:
    return sum(any(part.identity(image) in images for image in sample.images) for sample in part.samples)


def _text(sample: Sample) -> tuple[str, str]:
    """The question as the guard of training compares it, and answers without regard to case and white space."""
    return normalised_question(sample.question), "\n".join(_folded(text) for text in sample.references)


def _key(sample: Sample, part: _SplitData) -> tuple[tuple[str, ...], str, str]:
    return tuple(part.identity(image) for image in sample.images), *_text(sample)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def find_unreferenced(images: Iterable[Image]) -> list[str]:
    """Files of the suffixes in use below the images' common folder that no image names, relative to it, sorted."""
    paths = {image.source.path for image in images if isinstance(image.source, FileSource)}
    if not paths:
        return []
    root = Path(os.path.commonpath([path.parent for path in paths]))
    suffixes = {path.suffix.lower() for path in paths}
    return sorted(
        str(file.relative_to(root))
        for file in root.rglob("*")
        if file.suffix.lower() in suffixes and file not in paths and file.is_file()
    )
