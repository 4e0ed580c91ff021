"""Putting accepted runs on a board: entries written, pins completed, the change recorded."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.boards.acceptance import Candidate, RefusalError, judge_run
from mhe.boards.entries import (
    RUN_FILE,
    SCORES_FILE,
    compressed,
    entry_digest,
    parse_scores,
    read_entry,
    scores_content,
)
from mhe.boards.folders import ENTRIES, BoardFolder, open_board, rewrite_board, versions
from mhe.digests import cache_dir, digest_of
from mhe.documents.board import BoardChange, Entrant
from mhe.documents.run import RunRecord
from mhe.errors import DocumentError, StorageError, UserError
from mhe.run_folder import locked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mhe.boards.entries import EntryScores
    from mhe.boards.verification import MetricShelf
    from mhe.documents.board import BoardSpec, EntrantKind, MetricPin


ENTRANT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Admission:
    """How runs are to be entered."""

    day: str
    """Date of entry, YYYY-MM-DD."""
    entrant: str | None = None
    """One row for all runs; each its model's name where empty."""
    kind: EntrantKind | None = None
    summary: str | None = None
    replace: bool = False


@dataclass(frozen=True, slots=True)
class _Draft:
    candidate: Candidate
    run_json: bytes
    content: bytes
    digest: str

    @property
    def place(self) -> tuple[str, str, int]:
        return self.candidate.entrant, self.candidate.task.task, self.candidate.seed


def add_runs(
    path: Path, folders: Sequence[Path], shelf: MetricShelf, admission: Admission
) -> tuple[BoardFolder, list[BoardChange]]:
    """Enter runs into the board at `path`: all of them or none. Returns the board and what changed.

    A run that stands there already with the same content changes nothing. Raises `RefusalError` (a `DocumentError`)
    with every reason for every run, `UserError` for a version that is frozen, `BusyError`, `StorageError`.
    """
    if admission.entrant is not None and not ENTRANT_NAME.fullmatch(admission.entrant):
        raise UserError(f"--entrant {admission.entrant!r}: use lower-case letters, digits, dots and dashes.")
    with board_locked(path):
        board = open_board(path)
        newest = versions(board.path.parent)[-1]
        if board.spec.version != newest:
            raise UserError(
                f"{board.spec.key} is frozen: {board.spec.name}@v{newest} took its place, and new entries go there."
            )
        problems: list[str] = []
        drafts: list[_Draft] = []
        for folder in folders:
            try:
                drafts.append(_draft(board, folder, shelf, admission))
            except DocumentError as error:
                problems += [f"{folder}: {text}" for text in error.problems]
        problems += _together(board, drafts, admission)
        if problems:
            raise RefusalError(f"board {board.spec.key} refuses", list(dict.fromkeys(problems)))
        standing = board.spec.standing()
        fresh = [
            d for d in drafts if d.place not in standing or standing[d.place].digest != d.digest or not _lies(board, d)
        ]
        changes = [_change(d, admission, d.place in standing) for d in fresh]
        for draft in fresh:
            _write_entry(board, draft)
        spec = _extended(board.spec, drafts, changes, admission)
        return (rewrite_board(board, spec) if spec != board.spec else board), changes


@contextmanager
def board_locked(path: Path) -> Iterator[None]:
    """One process at a time changes a board; the lock lies in the cache, so that the board's folder stays clean."""
    lock = cache_dir() / "locks" / digest_of(str(path.resolve()))[:16]
    with locked(lock, f"changing board {path}"):
        yield


def _draft(board: BoardFolder, folder: Path, shelf: MetricShelf, admission: Admission) -> _Draft:
    candidate = judge_run(board, folder, shelf, entrant=admission.entrant, kind=admission.kind)
    run_json = published_record(candidate.record, candidate.scores).to_json().encode("utf-8")
    content = scores_content(candidate.scores)
    # What cannot be read back must not be written: ids that are texts, labels with control characters.
    parse_scores(content, f"{folder}: statistics")
    return _Draft(candidate, run_json, content, entry_digest(run_json, content))


def _lies(board: BoardFolder, draft: _Draft) -> bool:
    candidate = draft.candidate
    place = board.entry_path(candidate.entrant, candidate.task.name, candidate.seed)
    try:
        return read_entry(place, candidate.entrant, candidate.task.name, candidate.seed).digest == draft.digest
    except (DocumentError, OSError):
        return False


# ------------------------------------------------------------ rules over several runs


def _together(board: BoardFolder, drafts: Sequence[_Draft], admission: Admission) -> list[str]:
    """What only shows beside the other entries: places taken, one row with two models, one run on two rows."""
    problems = []
    spec = board.spec
    standing = spec.standing()
    rows = {entrant.name: entrant.model for entrant in spec.entrants}
    kinds = {entrant.name: entrant.kind for entrant in spec.entrants}
    prints = _fingerprints(board, {d.place for d in drafts} if admission.replace else set())
    taken: dict[tuple[str, str, int], Path] = {}
    owners = {change.run_key: change.entrant for change in standing.values()}
    for draft in drafts:
        candidate, model = draft.candidate, draft.candidate.record.model
        where = f"{candidate.folder}: "
        entrant, task, seed = draft.place
        if draft.place in taken:
            problems.append(where + f"{entrant} on {task}, seed {seed} is also {taken[draft.place]}: give one of them")
        taken[draft.place] = candidate.folder
        old = standing.get(draft.place)
        if old is not None and old.digest != draft.digest and not admission.replace:
            problems.append(
                where + f"{entrant} on {task}, seed {seed} stands there since {old.date} (run {old.run_key[:12]}): "
                "--replace puts this run in its place, and the change is recorded"
            )
        if rows.setdefault(entrant, model.name) != model.name:
            problems.append(where + f"entrant {entrant} is the model {rows[entrant]!r}, the run has {model.name!r}")
        if kinds.setdefault(entrant, candidate.kind) != candidate.kind:
            problems.append(where + f"entrant {entrant} is a {kinds[entrant]}, not a {candidate.kind}")
        # One training seed is one set of weights; a model without one has the same weights at every seed.
        slot = (entrant, model.seed)
        if prints.setdefault(slot, model.fingerprint) != model.fingerprint:
            problems.append(
                where + f"entrant {entrant} has other weights on this board ({prints[slot][:12]}, the run has "
                f"{model.fingerprint[:12]}): give another --entrant"
            )
        if owners.setdefault(candidate.record.run_key, entrant) != entrant:
            problems.append(where + f"the same run is the entrant {owners[candidate.record.run_key]} already")
    return problems + _shared_pins(drafts)


def _shared_pins(drafts: Sequence[_Draft]) -> list[str]:
    """Runs that would pin a task together must agree on its digests."""
    problems = []
    first: dict[str, RunRecord] = {}
    for draft in drafts:
        record = draft.candidate.record
        other = first.setdefault(draft.candidate.task.task, record)
        if (other.task.digest, other.data.digest) != (record.task.digest, record.data.digest):
            problems.append(f"{draft.candidate.folder}: is over other data than the first run given for this task")
    return problems


def _fingerprints(board: BoardFolder, without: set[tuple[str, str, int]]) -> dict[tuple[str, int | None], str]:
    found: dict[tuple[str, int | None], str] = {}
    names = {task.task: task.name for task in board.spec.tasks}
    for place in board.spec.standing():
        path = board.entry_path(place[0], names[place[1]], place[2]) / RUN_FILE
        if place not in without and path.is_file():
            model = RunRecord.from_json(path).model
            found[(place[0], model.seed)] = model.fingerprint
    return found


# ------------------------------------------------------------ writing


_PATH = re.compile(
    r"(?<![\w:/.~-])(?:file:/)?(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\",;()\[\]]+[/\\])+([^\s/\\'\",;()\[\]]*)"
)


def without_paths(text: str) -> str:
    """Absolute paths cut to their last part: where a file lay on one machine is nobody's business, and no proof."""
    return _PATH.sub(lambda match: f"…/{match.group(1)}", text)


def _scrubbed(value: object) -> object:
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, dict):
        return {key: _scrubbed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(item) for item in value]
    return value


def published_record(record: RunRecord, scores: EntryScores) -> RunRecord:
    """The run's record as the board keeps it: only the board's metrics, and no paths of the machine it ran on."""
    kept = {(metric.metric, metric.profile) for metric in scores.metrics}
    data = record.model_dump(mode="json")
    data["metrics"] = [m for m in data["metrics"] if (m["metric"], m["profile"]) in kept]
    for key in ("command", "warnings", "responses_from", "model", "backend", "efficiency", "environment"):
        data[key] = _scrubbed(data[key])
    return RunRecord.model_validate(data)


def _write_entry(board: BoardFolder, draft: _Draft) -> None:
    candidate = draft.candidate
    place = board.entry_path(candidate.entrant, candidate.task.name, candidate.seed)
    staging = board.path / ENTRIES / f".{candidate.entrant}-{candidate.task.name}-{candidate.seed}.new"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        (staging / RUN_FILE).write_bytes(draft.run_json)
        (staging / SCORES_FILE).write_bytes(compressed(draft.content))
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            shutil.rmtree(place)
        staging.replace(place)
    except OSError as error:
        raise StorageError(f"{place} cannot be written: {error.strerror}; run the same command again.") from None


def _change(draft: _Draft, admission: Admission, is_there: bool) -> BoardChange:
    entrant, task, seed = draft.place
    return BoardChange(
        date=admission.day,
        action="replaced" if is_there else "added",
        entrant=entrant,
        task=task,
        seed=seed,
        run_key=draft.candidate.record.run_key,
        digest=draft.digest,
        weights=draft.candidate.weights,
    )


def _with_resources(pin: MetricPin, profile: str, record: RunRecord) -> MetricPin:
    found = (m.resources for m in record.metrics if (m.metric, m.profile) == (pin.metric, profile))
    return pin.model_copy(update={"resources": pin.resources or next(found, {})})


def _extended(
    spec: BoardSpec, drafts: Sequence[_Draft], changes: Sequence[BoardChange], admission: Admission
) -> BoardSpec:
    entrants = {entrant.name: entrant for entrant in spec.entrants}
    tasks = {task.task: task for task in spec.tasks}
    for draft in drafts:
        candidate = draft.candidate
        record, name = candidate.record, candidate.entrant
        pinned = tasks[candidate.task.task]
        tasks[pinned.task] = pinned.model_copy(
            update={
                "title": pinned.title or record.task.title,
                "task_digest": pinned.task_digest or record.task.digest,
                "data_digest": pinned.data_digest or record.data.digest,
                "pins": tuple(_with_resources(pin, pinned.profile, record) for pin in pinned.pins),
            }
        )
        if name not in entrants:
            entrants[name] = Entrant(name=name, kind=candidate.kind, model=record.model.name, added=admission.day)
        if admission.summary is not None:
            entrants[name] = entrants[name].model_copy(update={"summary": admission.summary})
    update = {
        "tasks": tuple(tasks.values()),
        "entrants": tuple(entrants.values()),
        "changes": (*spec.changes, *changes),
    }
    return type(spec).model_validate(spec.model_copy(update=update).model_dump())
