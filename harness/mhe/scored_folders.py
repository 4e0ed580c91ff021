"""What can be compared of a folder: of a run, or of the scores that `mhe score --out` keeps."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import ConfigDict

from mhe.documents.base import Document
from mhe.documents.run import DataRecord, MetricRecord
from mhe.errors import DocumentError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mhe.documents.run import RunRecord

SCORES = "score.json"


@dataclass(frozen=True, slots=True)
class ScoredFolder:
    """One set of scored answers."""

    folder: Path
    key: str
    """The run's key; the place, where there is none."""
    model: str
    """The model's name, or that of the file of predictions."""
    identity: str
    """Equal for answers of one model that differ in seeds alone."""
    training_seed: int | None
    """Of a checkpoint."""
    seed: int | None
    """Of the run."""
    status: str
    """`complete` or `partial`."""
    samples: int
    """Answered or not."""
    metrics: tuple[MetricRecord, ...]
    title: str
    """What was answered, for people."""
    basis: Mapping[str, object]
    """What must be equal for answers to be comparable, the most telling first."""
    groups_of: str
    """Whose groups these are, for messages."""
    primary: str | None
    is_phantom: bool
    about: Mapping[str, object]
    """What was answered, for programs."""

    @property
    def seed_shown(self) -> int:
        """The training seed of a checkpoint, else the seed of the run."""
        return self.training_seed if self.training_seed is not None else self.seed or 0


def of_run(record: RunRecord, folder: Path) -> ScoredFolder:
    """A run, by its record."""
    task, data = record.task, record.data
    name = f"{task.name} (version {task.version})"
    return ScoredFolder(
        folder=folder,
        key=record.run_key,
        model=record.model.name,
        identity=_identity(record),
        training_seed=record.model.seed,
        seed=record.seed,
        status=record.status,
        samples=record.counts.samples,
        metrics=tuple(record.metrics),
        title=f"{name}, split {data.split}",
        basis={
            "made by": "mhe eval",
            "task": name,
            "split": data.split,
            "--limit": data.limit,
            "digest of the task document": task.digest[:12],
            "digest of the data": data.digest[:12],
        },
        groups_of=f"task {task.name}",
        primary=task.primary,
        is_phantom=task.phantom,
        about={"task": task.model_dump(mode="json"), "data": data.model_dump(mode="json")},
    )


def read_scored_folder(place: Path) -> ScoredFolder:
    """A run folder or its `run.json`, or a folder of `mhe score --out` or its `score.json`.

    Raises `UserError` where there is neither, and `DocumentError` for a damaged document.
    """
    from mhe.documents.run import RunRecord

    folder = place.parent if place.name in (SCORES, "run.json") else place
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. See: mhe show runs")
    if (folder / "run.json").is_file():
        return of_run(RunRecord.from_json(folder / "run.json"), folder)
    if (folder / "key.json").is_file():
        raise UserError(f"{folder}: this run was interrupted before its end; the same `mhe eval` goes on with it.")
    if not (folder / SCORES).is_file():
        raise UserError(
            f"{folder}: neither run.json nor {SCORES} here, so it is neither a run's folder (see: mhe show runs) nor "
            "one that `mhe score --out` made."
        )
    return _of_scores(_ScoreDocument.from_json(folder / SCORES), folder)


class _ScoreDocument(Document):
    """What is read of `score.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    predictions: str
    status: Literal["complete", "partial"]
    samples: int
    metrics: tuple[MetricRecord, ...]
    task: str | None = None
    """`name@version`."""
    primary: str | None = None
    phantom: bool = False
    data: DataRecord | None = None
    references: str | None = None
    references_digest: str | None = None
    kind: str | None = None


def _of_scores(found: _ScoreDocument, folder: Path) -> ScoredFolder:
    basis: dict[str, object] = {"made by": "mhe score"}
    about: dict[str, object]
    if found.task is not None and found.data is not None:
        title = f"{found.task}, split {found.data.split}"
        basis |= {"scored against": f"task {found.task}", "split": found.data.split, "--limit": found.data.limit}
        basis["digest of the data"] = found.data.digest[:20]
        about = {"task": found.task, "data": found.data.model_dump(mode="json")}
    elif found.references is not None and found.references_digest is not None:
        title = f"answers to {found.references}"
        basis |= {"scored against": "a file of references", "kind": found.kind}
        basis["references"] = f"{found.references} (digest {found.references_digest[:12]})"
        about = {name: getattr(found, name) for name in ("references", "references_digest", "kind")}
    else:
        raise DocumentError(str(folder / SCORES), ["names neither a task with its data nor references"])
    return ScoredFolder(
        folder=folder,
        key=str(folder.resolve()),
        model=found.predictions,
        identity=str(folder.resolve()),
        training_seed=None,
        seed=None,
        status=found.status,
        samples=found.samples,
        metrics=found.metrics,
        title=title,
        basis=basis,
        groups_of=title,
        primary=found.primary,
        is_phantom=found.phantom,
        about=about,
    )


def _identity(record: RunRecord) -> str:
    seed = record.model.seed
    options = json.dumps(record.backend.key_options, sort_keys=True)
    if seed is not None:
        # An adapter's folder names the training seed: NAME/0/adapter.
        options = options.replace(f"/{record.model.name}/{seed}", f"/{record.model.name}")
    weights = record.model.fingerprint if seed is None else ""
    generation = record.generation.model_dump_json()
    return json.dumps([record.model.name, weights, record.backend.name, options, generation])
