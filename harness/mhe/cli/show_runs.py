"""Runs on disk as rows: what was found, what was interrupted, what cannot be read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mhe.cli.run_tables import number
from mhe.documents.run import RunRecord
from mhe.errors import DocumentError, UserError

if TYPE_CHECKING:
    from pathlib import Path

RUN_COLUMNS = ("task", "model", "seed", "status", "metric", "value", "95 % interval", "n", "finished", "folder")


def run_rows(runs_dir: Path, task: str | None = None) -> tuple[list[dict[str, object]], list[str]]:
    """One row a run folder below `runs_dir`, by task, model and time of finishing; and what could not be read."""
    rows: list[dict[str, object]] = []
    problems: list[str] = []
    folders = {path.parent for path in runs_dir.glob("*/*/*/key.json")} | {
        path.parent for path in runs_dir.glob("*/*/*/run.json")
    }
    for folder in sorted(folders):
        if task is not None and folder.parent.parent.name != task:
            continue
        try:
            path = folder / "run.json"
            rows.append(_finished(RunRecord.from_json(path), folder) if path.exists() else _unfinished(folder))
        except DocumentError as error:
            problems.append(str(error))
    rows.sort(key=lambda row: (str(row["task"]), str(row["model"]), str(row["finished"] or "~")))
    return rows, problems


def _finished(record: RunRecord, folder: Path) -> dict[str, object]:
    scores = {score.name: score for metric in record.metrics for score in metric.values}
    primary = scores.get(record.task.primary)
    return {
        "task": record.task.name,
        "model": record.model.name if record.model.seed is None else f"{record.model.name}@{record.model.seed}",
        "seed": record.seed,
        "status": record.status,
        "provisional": record.status != "complete",
        "metric": record.task.primary,
        "value": primary.value if primary else None,
        "low": primary.low if primary else None,
        "high": primary.high if primary else None,
        "answered": record.counts.answered,
        "samples": record.counts.samples,
        "finished": record.finished,
        "folder": str(folder),
    }


def _unfinished(folder: Path) -> dict[str, object]:
    samples = folder / "samples.jsonl"
    try:
        seed = json.loads((folder / "key.json").read_text(encoding="utf-8"))["parts"]["seed"]
        answered = samples.read_bytes().count(b"\n") if samples.exists() else 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DocumentError(str(folder / "key.json"), [f"cannot be read: {type(error).__name__}: {error}"]) from None
    return {
        "task": folder.parent.parent.name,
        "model": folder.parent.name,
        "seed": seed,
        "status": "unfinished",
        "provisional": True,
        "metric": "",
        "value": None,
        "low": None,
        "high": None,
        "answered": answered,
        "samples": None,
        "finished": None,
        "folder": str(folder),
    }


def text_row(row: dict[str, object]) -> dict[str, object]:
    """A row of `run_rows` for people, under the names of `RUN_COLUMNS`."""
    value, low, high = (_number_of(row[name]) for name in ("value", "low", "high"))
    status = row["status"]
    return {
        **row,
        "status": "partial, provisional" if status == "partial" else status,
        "value": number(value),
        "95 % interval": f"{number(low)} to {number(high)}" if low is not None else "—",
        "n": row["answered"] if row["samples"] is None else f"{row['answered']} of {row['samples']}",
        "finished": str(row["finished"])[:16].replace("T", " ") if row["finished"] else "",
    }


def _number_of(value: object) -> float | None:
    return value if isinstance(value, float) else None


def read_run(place: Path) -> tuple[RunRecord, Path]:
    """The record of a run folder, or of a `run.json`. Raises `UserError` where there is none yet."""
    folder = place.parent if place.name == "run.json" else place
    path = folder / "run.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. See: mhe show runs")
    if not path.is_file():
        if (folder / "key.json").is_file():
            raise UserError(f"{folder}: this run was interrupted before its end; the same `mhe eval` goes on with it.")
        raise UserError(f"{folder}: no run.json here, so it is no run's folder. See: mhe show runs")
    return RunRecord.from_json(path), folder
