"""Predictions made elsewhere: joined to samples by id, never by position, all problems at once."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.answers import extract_answer
from mhe.errors import DocumentError
from mhe.text_rows import BadRowError, Row, names_of, parse_rows, row_id, shortened
from mhe.values import Case

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from mhe.samples import SampleSet
    from mhe.values import Sample

COLUMNS = {"id": ("id",), "prediction": ("prediction", "caption")}
"""What a table of predictions has; `ID,Caption` is ImageCLEF's."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of a predictions file."""

    line: int
    id: str
    text: str


def read_predictions(path: Path) -> list[Prediction]:
    """The predictions of a file, in order; blank lines and other fields are passed over.

    JSON lines `{"id": …, "prediction": …}`, or a table (`.csv`, `.tsv`) with the columns `id` and `prediction` or
    ImageCLEF's `ID,Caption`, where an empty field is an empty answer. An id may be written as a whole number. Raises
    `UserError` for a file that cannot be read and `DocumentError` with every line that is not a prediction.
    """
    expected = 'no predictions: expected lines {"id": …, "prediction": …}, in .csv and .tsv a header and rows'
    return parse_rows(path, _prediction, columns=COLUMNS, expected=expected)


def _prediction(row: Row) -> Prediction:
    missing = [name for name in ("id", "prediction") if name not in row.fields]
    if missing:
        raise BadRowError(f"no {' and no '.join(f'`{name}`' for name in missing)}; it has: {names_of(row.fields)}")
    name, text = row_id(row), row.fields["prediction"]
    if not isinstance(text, str):
        hint = "; leave out what has no answer and pass --allow-partial" if text is None else ""
        raise BadRowError(f"`prediction` must be a text, found {json.dumps(text)[:40]}{hint}")
    return Prediction(row.line, name, text)


def join_predictions(
    path: Path, predictions: Sequence[Prediction], data: SampleSet, *, allow_partial: bool = False
) -> list[Case]:
    """Cases in the order of the samples, with answers taken from the texts by the task's own rule.

    Raises `DocumentError` listing unknown and doubled ids, and missing ones unless `allow_partial`.
    """
    limit = f", first {data.record.limit}" if data.record.limit else ""
    where = f"{data.task.name}, split {data.split}{limit}"
    pairs, problems = pair_by_id(predictions, data.samples, where=where, allow_partial=allow_partial)
    if problems:
        raise DocumentError(str(path), problems)
    return [Case(sample, extract_answer(data.task.answer, text)) for sample, text in pairs]


def pair_by_id(
    predictions: Sequence[Prediction], samples: Sequence[Sample], *, where: str, allow_partial: bool
) -> tuple[list[tuple[Sample, str]], list[str]]:
    """Each answered sample with its text, in the order of the samples; and all problems of the ids.

    `where` names the place of the samples in messages.
    """
    lines: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        lines[prediction.id].append(prediction)
    known = {sample.id for sample in samples}
    problems = doubled_ids((prediction.id, prediction.line) for prediction in predictions)
    if unknown := [f"{name!r} (line {group[0].line})" for name, group in lines.items() if name not in known]:
        problems.append(f"{_count(unknown, 'id')} not in {where}: {_list(unknown)}")
    missing = [repr(sample.id) for sample in samples if sample.id not in lines]
    if missing and not allow_partial:
        problems.append(
            f"{_count(missing, 'sample')} without a prediction: {_list(missing)}. "
            "Pass --allow-partial to score what is there."
        )
    return [(sample, lines[sample.id][0].text) for sample in samples if sample.id in lines], problems


def doubled_ids(ids: Iterable[tuple[str, int]]) -> list[str]:
    """One message with every id that stands on more than one line, or none, from pairs of id and line."""
    lines: dict[str, list[int]] = defaultdict(list)
    for name, line in ids:
        lines[name].append(line)
    doubled = [f"{name!r} (lines {_and(numbers)})" for name, numbers in lines.items() if len(numbers) > 1]
    return [f"{_count(doubled, 'id')} more than once: {_list(doubled)}"] if doubled else []


def _count(items: Sequence[str], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _list(items: Sequence[str]) -> str:
    return ", ".join(shortened(items, "more"))


def _and(numbers: Iterable[int]) -> str:
    *others, last = [str(number) for number in numbers]
    return f"{', '.join(others)} and {last}"
