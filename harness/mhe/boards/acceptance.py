"""The rules of entry. A run that breaks one is refused with every reason at once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.boards.run_scores import scores_of_run
from mhe.boards.verification import disagreements
from mhe.digests import digest_of, file_digest
from mhe.documents.run import RunRecord
from mhe.errors import DocumentError, ModelUnusableError
from mhe.fingerprints import fingerprint_folder
from mhe.model_names import resolve_location
from mhe.run_folder import safe_name

if TYPE_CHECKING:
    from mhe.boards.entries import EntryScores
    from mhe.boards.folders import BoardFolder
    from mhe.boards.verification import MetricShelf
    from mhe.documents.board import BoardSpec, BoardTask, EntrantKind, WeightsCheck


@dataclass(frozen=True, slots=True)
class Candidate:
    """A run that wants to stand on a board."""

    folder: Path
    record: RunRecord
    task: BoardTask
    entrant: str
    kind: EntrantKind
    seed: int
    weights: WeightsCheck
    scores: EntryScores


class RefusalError(DocumentError):
    """A run that the board does not take, with every reason."""


def entry_seed(record: RunRecord) -> int:
    """The training seed of a checkpoint, else the seed of the run."""
    return record.model.seed if record.model.seed is not None else record.seed


def entrant_name(record: RunRecord) -> str:
    """The row a run belongs to unless another is asked for: its model's name, as a folder."""
    return re.sub(r"^[^a-z0-9]+", "", safe_name(record.model.name).lower().replace("@", "-")) or "unnamed"


def pin_problems(record: RunRecord, task: BoardTask) -> list[str]:
    """Everything in which a record differs from what the board pins for its task."""
    pairs = [
        ("task", f"{record.task.name}@{record.task.version}", task.task),
        ("task document", record.task.digest, task.task_digest or record.task.digest),
        ("split", record.data.split, task.split),
        ("limit", record.data.limit, task.limit),
        ("data", record.data.digest, task.data_digest or record.data.digest),
    ]
    problems = [
        f"{what}: the board pins {wanted!r}, the run has {found!r}" for what, found, wanted in pairs if found != wanted
    ]
    pinned, used = task.generation.model_dump(), record.generation.model_dump()
    problems += [
        f"generation.{name}: the board pins {pinned[name]!r}, the run has {used[name]!r}"
        for name in pinned
        if pinned[name] != used[name]
    ]
    return problems + _metric_problems(record, task)


def _metric_problems(record: RunRecord, task: BoardTask) -> list[str]:
    problems = []
    for pin in task.pins:
        found = [m for m in record.metrics if (m.metric, m.profile) == (pin.metric, task.profile)]
        if not found:
            problems.append(
                f"metric {pin.metric} under profile {task.profile} is missing: "
                f"mhe eval … --profile {task.profile} scores the answers again without the model"
            )
            continue
        metric = found[0]
        problems += [
            f"metric {pin.metric}: {what} is pinned to {wanted!r}, the run has {value!r}"
            for what, value, wanted in [
                ("version", metric.metric_version, pin.version),
                ("profile version", metric.profile_version, pin.profile_version),
                ("options", metric.options, pin.options),
                ("resources", metric.resources, pin.resources or metric.resources),
            ]
            if value != wanted
        ]
        if metric.provisional:
            problems.append(f"metric {pin.metric}: provisional, because some samples have no answer")
        values = {value.name: value for value in metric.values}
        for name in task.metrics:
            if name in pin.values and name not in values:
                problems.append(f"metric {pin.metric}: the value {name} is missing")
            elif name in pin.values and name == task.primary and values[name].value is None:
                problems.append(f"metric {pin.metric}: {name} ranks this board and is null: {values[name].reason}")
    return problems


def record_problems(record: RunRecord, board: BoardSpec, task: BoardTask, seed: int) -> list[str]:
    """Pins, completeness and seed: the rules that hold at entry and at every check."""
    problems = []
    counts = record.counts
    if record.status != "complete" or counts.errors:
        problems.append(
            f"the run is {record.status}: {counts.errors} of {counts.samples} samples have no answer "
            "(run the same command again to try them once more)"
        )
    if record.data.samples != counts.samples:
        problems.append(f"the run counts {counts.samples} samples, and its data has {record.data.samples}")
    if seed not in board.seeds:
        problems.append(f"seed {seed} is not one of the board's: {', '.join(map(str, board.seeds))}")
    return problems + pin_problems(record, task)


def judge_run(
    board: BoardFolder, folder: Path, shelf: MetricShelf, *, entrant: str | None, kind: EntrantKind | None
) -> Candidate:
    """Apply every rule to a run folder. Raises `RefusalError` with all reasons at once."""
    if not (folder / "run.json").is_file():
        reason = "no such folder" if not folder.is_dir() else "no run.json: not a run, or one that has not ended"
        raise RefusalError(str(folder), [f"{reason}; `mhe show runs` lists finished runs"])
    record = RunRecord.from_json(folder / "run.json")
    spec = board.spec
    task = next((t for t in spec.tasks if t.name == record.task.name), None)
    if task is None:
        names = ", ".join(t.task for t in spec.tasks)
        raise RefusalError(str(folder), [f"task {record.task.name!r} is not on board {spec.key}, which has: {names}"])
    seed, name = entry_seed(record), entrant or entrant_name(record)
    problems = record_problems(record, spec, task, seed)
    weights: WeightsCheck = "unverified"
    try:
        weights = check_weights(record)
    except ModelUnusableError as error:
        problems.append(str(error))
    scores = None
    pinned = {(pin.metric, task.profile) for pin in task.pins}
    metrics = [m for m in record.metrics if (m.metric, m.profile) in pinned]
    try:
        scores = scores_of_run(folder, metrics)
        problems += disagreements(record.model_copy(update={"metrics": tuple(metrics)}), scores, shelf)
    except DocumentError as error:
        problems += error.problems
    if scores is not None and len(scores.samples.ids) != record.counts.samples:
        problems.append(f"statistics are over {len(scores.samples.ids)} samples, the run has {record.counts.samples}")
    if problems or scores is None:
        raise RefusalError(str(folder), list(dict.fromkeys(problems)))
    return Candidate(folder, record, task, name, kind or _kind_of(board, name, record), seed, weights, scores)


def _kind_of(board: BoardFolder, name: str, record: RunRecord) -> EntrantKind:
    known = next((e.kind for e in board.spec.entrants if e.name == name), None)
    return known or ("checkpoint" if record.model.lineage else "model")


def check_weights(record: RunRecord) -> WeightsCheck:
    """Hash the weights of a run again where they lie on this machine.

    Raises `ModelUnusableError` where they are no longer what the run used.
    """
    model = record.model
    if record.responses_from != "backend" or not model.verified:
        return "unverified"
    if not model.files:
        return "hub commit" if model.revision or "/" in model.location else "no weights"
    try:
        place = Path(resolve_location(model.location))
    except ModelUnusableError:
        # The package that holds the weights is not installed on this machine.
        return "not here"
    if not place.is_dir():
        return "not here"
    changed = _changed_files(record, place)
    if changed is None:
        return "not here"
    if changed:
        raise ModelUnusableError(
            f"the weights in {place} are not those of the run any more (changed: {', '.join(changed)}); "
            "evaluate again: a changed model is a new run"
        )
    return "hashed again"


def _changed_files(record: RunRecord, place: Path) -> list[str] | None:
    """Names of files that differ from the record; None where adapters beside the model are not to be found."""
    files = record.model.files
    if digest_of(dict(files)) != record.model.fingerprint:
        # A backend with a fingerprint of its own: its files can be read again, and new ones not be noticed.
        return sorted(name for name, digest in files.items() if _digest_at(place / name) != digest)
    found = fingerprint_folder(place, fresh=True, extra_folders=_adapter_folders(record))
    if found.digest == record.model.fingerprint:
        return []
    changed = sorted(
        name
        for name in files.keys() | found.files.keys()
        if "/" not in name and files.get(name) != found.files.get(name)
    )
    return changed or None


def _digest_at(path: Path) -> str | None:
    return file_digest(path, fresh=True) if path.is_file() else None


def _adapter_folders(record: RunRecord) -> list[Path]:
    """Folders among the backend's options that hold the further files of the fingerprint."""
    if not any("/" in name for name in record.model.files):
        return []
    found: list[Path] = []
    for value in [*record.backend.key_options.values(), *record.backend.neutral_options.values()]:
        texts = value if isinstance(value, list | tuple) else [value]
        found += [Path(t) for t in texts if isinstance(t, str) and t.startswith("/") and Path(t).is_dir()]
    return found
