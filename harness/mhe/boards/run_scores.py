"""The per-sample statistics of a run folder, as a board keeps them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mhe.boards.entries import EntryMetric, EntrySamples, EntryScores
from mhe.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mhe.documents.run import MetricRecord


def scores_of_run(folder: Path, metrics: Sequence[MetricRecord]) -> EntryScores:
    """The statistics of chosen metrics, from the score files of a run.

    Raises `DocumentError` with every file that is missing, damaged, or over other samples than the first.
    """
    problems: list[str] = []
    samples: EntrySamples | None = None
    found = []
    for metric in metrics:
        try:
            content = _score_file(folder, metric)
        except ValueError as error:
            problems.append(str(error))
            continue
        here, block = content
        if samples is None:
            samples = here
        elif samples != here:
            problems.append(f"{metric.file}: is over other samples than the first score file")
        found.append(block)
    if samples is None and not problems:
        problems.append("no metric of this run is on the board")
    if problems or samples is None:
        raise DocumentError(str(folder), problems)
    return EntryScores(samples, tuple(found))


def _score_file(folder: Path, metric: MetricRecord) -> tuple[EntrySamples, EntryMetric]:
    if metric.file is None:
        raise ValueError(f"{metric.metric}: the run holds no statistics of it")
    try:
        data = json.loads((folder / metric.file).read_text(encoding="utf-8"))
        ids = tuple(str(name) for name in data["ids"])
        units = tuple(str(name) for name in data["units"])
        groups = {
            str(group): tuple(None if label is None else str(label) for label in labels)
            for group, labels in data["groups"].items()
        }
        rows = tuple(tuple(float(value) for value in row) for row in data["statistics"])
        block = EntryMetric(
            metric=data["metric"],
            metric_version=data["metric_version"],
            options=data["options"],
            profile=data["profile"],
            profile_version=data["profile_version"],
            score_key=data["score_key"],
            columns=tuple(data["columns"]),
            rows=rows,
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{metric.file}: cannot be read ({type(error).__name__}: {error})") from None
    if not len(ids) == len(units) == len(rows) or any(len(labels) != len(ids) for labels in groups.values()):
        raise ValueError(f"{metric.file}: ids, units, groups and statistics differ in length")
    return EntrySamples(ids, units, groups), block
