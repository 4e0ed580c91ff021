"""What a step trains and validates on, after the data guard.

Training prompts are exactly those of evaluation: the same samples, the same `build_request`.

The guard (DESIGN §6). The evaluated split of each task in the mixture, its `default_split`, is never trained on.
Images that the training data shares with it are refused, unless the task declares them in `shared_images`, as
VQA-RAD does, whose official splits share most images. Of declared ones, a training pair that repeats an evaluated
pair (same images, same normalised question) is dropped and counted.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.digests import digest_of
from mhe.documents.run import DataRecord
from mhe.errors import UserError
from mhe.prompting import build_request
from mhe.protocols import TrainingExample
from mhe.samples import SampleSet, load_samples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mhe.catalog import Catalog
    from mhe.documents.pipeline import TrainingChoice
    from mhe.documents.task import TaskSpec
    from mhe.values import Sample

VALIDATION_SPLIT = "validation"
VALIDATION_FRACTION = 0.05


@dataclass(frozen=True, slots=True)
class GuardReport:
    """What the data guard found."""

    dropped_pairs: int = 0
    """Training pairs dropped because they repeat an evaluated pair; such validation pairs go too, uncounted."""
    shared_images: int = 0
    """Distinct images of the training data that an evaluated split has as well."""

    def __add__(self, other: GuardReport) -> GuardReport:
        return GuardReport(self.dropped_pairs + other.dropped_pairs, self.shared_images + other.shared_images)


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Examples of a step, and the records of which they are."""

    train: tuple[TrainingExample, ...]
    validation: tuple[TrainingExample, ...]
    train_record: DataRecord
    validation_record: DataRecord | None
    guard: GuardReport
    tasks: Mapping[str, TaskSpec]

    @property
    def digest(self) -> str:
        """Over every prompt, image content and answer, in order, of both parts."""
        return digest_of([[[e.request.digest, e.answer] for e in part] for part in (self.train, self.validation)])


@dataclass(frozen=True, slots=True)
class _Evaluated:
    """An evaluated split as the guard sees it."""

    task: TaskSpec
    images: frozenset[str]
    pairs: frozenset[tuple[tuple[str, ...], str]]


def normalised_question(text: str | None) -> str:
    """A question without regard to case, white space, punctuation at its ends and Unicode form."""
    folded = unicodedata.normalize("NFKC", text or "").casefold()
    return re.sub(r"\s+", " ", folded).strip(" .?!:;,。？！")


def load_training_set(
    catalog: Catalog,
    choices: Sequence[TrainingChoice],
    *,
    seed: int,
    data_dir: Path | None = None,
    offline: bool = False,
) -> TrainingSet:
    """Read, guard, mix and split the data of a step. `seed` draws fractions, mixtures and the validation part.

    Raises `UserError` for an evaluated split, undeclared shared images and training data that is empty after the
    guard; `UnknownNameError` for tasks and splits; `DataMissingError`.
    """
    tasks = {choice.task: catalog.task(choice.task) for choice in choices}
    for choice in choices:
        _refuse_evaluated_split(tasks[choice.task], choice)
    evaluated = [_read_evaluated(catalog, task, data_dir, offline=offline) for task in tasks.values()]
    train: list[TrainingExample] = []
    held: list[TrainingExample] = []
    train_sets: list[SampleSet] = []
    held_sets: list[SampleSet] = []
    report = GuardReport()
    for choice in choices:
        task = tasks[choice.task]
        split = choice.split or task.train_split or ""
        found = load_samples(catalog, task, split=split, limit=choice.limit, data_dir=data_dir, offline=offline)
        usable = _without_broken(task, found.samples)
        kept, guarded = _guard(task, split, _drawn(usable, choice.fraction, seed), evaluated)
        report += guarded
        part, kept = _validation_part(catalog, task, choice, kept, evaluated, seed, data_dir, offline=offline)
        train += _examples(task, _weighted(kept, choice.weight, seed), seed)
        held += _examples(task, part.samples, seed)
        train_sets.append(found)
        held_sets += [part] if part.samples else []
    if not train:
        raise UserError(_nothing_left(choices, report))
    return TrainingSet(
        train=tuple(train),
        validation=tuple(held),
        train_record=_record(train_sets, train),
        validation_record=_record(held_sets, held) if held_sets else None,
        guard=report,
        tasks=tasks,
    )


# ---------------------------------------------------------------- the guard


def _refuse_evaluated_split(task: TaskSpec, choice: TrainingChoice) -> None:
    split = choice.split or task.train_split
    allowed = [name for name in task.splits if name != task.default_split]
    if split is None:
        raise UserError(
            f"task {task.name} has no training split. "
            + (f"Name one with --split: {', '.join(allowed)}." if allowed else "It is for evaluation only.")
        )
    for name in [split, choice.validation_split]:
        if name == task.default_split:
            raise UserError(
                f"split {name!r} of task {task.name} is what boards evaluate, so nothing may be trained or chosen "
                f"on it. Allowed with --split: {', '.join(allowed) or 'none'}."
            )


def _read_evaluated(catalog: Catalog, task: TaskSpec, data_dir: Path | None, *, offline: bool) -> _Evaluated:
    # A subset is only part of what is published: the whole split is kept out of training.
    whole = task.model_copy(update={"subset": None})
    samples = load_samples(catalog, whole, split=task.default_split, data_dir=data_dir, offline=offline).samples
    keys = [_pair(sample) for sample in samples]
    return _Evaluated(task, frozenset(image for key in keys for image in key[0]), frozenset(keys))


def _pair(sample: Sample) -> tuple[tuple[str, ...], str]:
    return tuple(image.source.digest() for image in sample.images), normalised_question(sample.question)


def _guard(
    task: TaskSpec, split: str, samples: Sequence[Sample], evaluated: Sequence[_Evaluated]
) -> tuple[list[Sample], GuardReport]:
    shared: set[str] = set()
    kept = []
    keys = [_pair(sample) for sample in samples]
    for other in evaluated:
        common = {image for key in keys for image in key[0]} & other.images
        if common and not _is_declared(task, split, other.task):
            names = sorted({i.id for s in samples for i in s.images if i.source.digest() in common})
            raise UserError(
                f"{len(common)} image(s) of {task.name}, split {split}, are also in {other.task.name}, split "
                f"{other.task.default_split}, which boards evaluate: {', '.join(names[:5])}"
                f"{', …' if len(names) > 5 else ''}. Train on data without them. Where the publisher's own splits "
                "share images, declare it under shared_images in the task's task.yaml."
            )
        shared |= common
    repeated = frozenset().union(*(other.pairs for other in evaluated))
    kept = [sample for sample, key in zip(samples, keys, strict=True) if key not in repeated]
    return kept, GuardReport(dropped_pairs=len(samples) - len(kept), shared_images=len(shared))


def _is_declared(task: TaskSpec, split: str, other: TaskSpec) -> bool:
    pair = {split, other.default_split}
    return task.name == other.name and any(pair == set(shared.splits) for shared in task.shared_images)


def _without_broken(task: TaskSpec, samples: Sequence[Sample]) -> list[Sample]:
    broken = {known.id for known in task.broken}
    return [sample for sample in samples if sample.id not in broken]


# ---------------------------------------------------------------- validation and mixing


def _validation_part(
    catalog: Catalog,
    task: TaskSpec,
    choice: TrainingChoice,
    train: list[Sample],
    evaluated: Sequence[_Evaluated],
    seed: int,
    data_dir: Path | None,
    *,
    offline: bool,
) -> tuple[SampleSet, list[Sample]]:
    """The samples to validate on, and what is left to train on."""
    own = choice.split or task.train_split or ""
    if choice.validation_split == own:
        raise UserError(
            f"task {task.name}: validation_split {own!r} is the split that is trained on. Name another, or none: "
            f"{VALIDATION_FRACTION:.0%} of the training images are held out then."
        )
    split = choice.validation_split or (VALIDATION_SPLIT if VALIDATION_SPLIT in task.splits else None)
    if split is not None and split not in (task.default_split, own):
        found = load_samples(catalog, task, split=split, limit=choice.limit, data_dir=data_dir, offline=offline)
        kept, _ = _guard(task, split, _without_broken(task, found.samples), evaluated)
        return SampleSet(task, split, kept, found.record, found.data_dir), train
    held, rest = _split_by_image(train, VALIDATION_FRACTION, seed)
    record = DataRecord(
        task=task.key,
        split=f"{own} ({VALIDATION_FRACTION:.0%} of images, seed {seed})",
        digest="",
        samples=len(held),
        images=0,
        place="",
    )
    return SampleSet(task, record.split, held, record, data_dir), rest


def _split_by_image(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """A seeded share of the images with all their samples, and the rest; all is rest where one image is all."""
    first = {sample.id: sample.images[0].source.digest() if sample.images else sample.id for sample in samples}
    units = sorted(set(first.values()), key=lambda unit: digest_of([seed, "validation", unit]))
    if len(units) < 2:
        return [], list(samples)
    chosen = set(units[: max(1, round(fraction * len(units)))])
    held = [sample for sample in samples if first[sample.id] in chosen]
    return held, [sample for sample in samples if first[sample.id] not in chosen]


def _drawn(samples: Sequence[Sample], fraction: float, seed: int) -> list[Sample]:
    """A seeded share of the samples, at least one, in their order."""
    if fraction >= 1:
        return list(samples)
    ranked = sorted(samples, key=lambda sample: digest_of([seed, "fraction", sample.id]))
    chosen = {sample.id for sample in ranked[: max(1, round(fraction * len(samples)))]}
    return [sample for sample in samples if sample.id in chosen]


def _weighted(samples: Sequence[Sample], weight: float, seed: int) -> list[Sample]:
    """Each sample `weight` times an epoch: whole repeats, and a seeded draw for the remainder."""
    whole, part = int(weight), weight - int(weight)
    return [*list(samples) * whole, *(_drawn(samples, part, seed) if part > 0 else [])]


def _examples(task: TaskSpec, samples: Sequence[Sample], seed: int) -> list[TrainingExample]:
    return [
        TrainingExample(request=build_request(task, s, task.generation, seed), answer=s.references[0], sample=s)
        for s in samples
    ]


# ---------------------------------------------------------------- records


def _record(sets: Sequence[SampleSet], examples: Sequence[TrainingExample]) -> DataRecord:
    images = {image.source.digest() for example in examples for image in example.sample.images}
    return DataRecord(
        task=" + ".join(found.record.task for found in sets),
        split=" + ".join(dict.fromkeys(found.split for found in sets)),
        digest=digest_of([[example.request.digest, example.answer] for example in examples]),
        samples=len(examples),
        images=len(images),
        limit=sets[0].record.limit if len(sets) == 1 else None,
        place=" + ".join(dict.fromkeys(found.record.place for found in sets if found.record.place)) or "local",
    )


def _nothing_left(choices: Sequence[TrainingChoice], report: GuardReport) -> str:
    names = ", ".join(choice.task for choice in choices)
    return (
        f"no training example is left of {names}: {report.dropped_pairs} pair(s) repeat an evaluated pair. "
        "Raise --limit, or choose another --split."
    )
