"""References without a task: a file of them beside a file of predictions, joined by id, all problems at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from mhe.errors import DocumentError
from mhe.image_folders import ImageFolder, with_images
from mhe.predictions import doubled_ids, pair_by_id, read_predictions
from mhe.text_rows import BadRowError, Row, names_of, parse_rows, row_id
from mhe.values import Case, Sample

if TYPE_CHECKING:
    from pathlib import Path

    from mhe.predictions import Prediction

COLUMNS = {"id": ("id",), "reference": ("reference", "caption")}
"""What a table of references has; `ID,Caption` is ImageCLEF's."""
GROUP = "group:"
"""`group:modality` is the group `modality`."""


@dataclass(frozen=True, slots=True)
class FilePair:
    """Two files, joined."""

    predictions: list[Prediction]
    samples: list[Sample]
    """In the order of the references."""
    cases: list[Case]
    """The samples that have a prediction; the answer is the text as it stands."""

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the references name, in their order."""
        return tuple(dict.fromkeys(group for sample in self.samples for group in sample.groups))


def read_pair(
    predictions: Path, references: Path, *, allow_partial: bool = False, images: Path | None = None
) -> FilePair:
    """Read and join two files.

    References are JSON lines `{"id": …, "references": […]}` or `{"id": …, "reference": "…"}`, or a table (`.csv`,
    `.tsv`) with the columns `id` and `reference` or ImageCLEF's `ID,Caption`. Further fields that are used where they
    are there and not empty: `question`, `answer_type` (closed or open), `image` (what intervals resample by) and
    `group:NAME` (reported by). For predictions see `read_predictions`. With a folder of `images` each sample gets the
    one that its `image` names, else that of its id (see `ImageFolder.source`).

    Raises `UserError` for a file that cannot be read and for a folder that is none, and `DocumentError` with every bad
    line of both files, else with every doubled, unknown and missing id.
    """
    folder = None if images is None else ImageFolder(images)
    texts, samples = _read_both(predictions, references)
    problems = [f"{references}: {problem}" for problem in doubled_ids((s.id, line) for line, s in samples)]
    known = [sample for _, sample in samples]
    if folder is not None:
        known = with_images(known, folder)
    pairs, gaps = pair_by_id(texts, known, where=references.name, allow_partial=allow_partial)
    if problems or gaps:
        raise DocumentError(str(predictions), [*gaps, *problems])
    return FilePair(texts, known, [Case(sample, text) for sample, text in pairs])


def _read_both(predictions: Path, references: Path) -> tuple[list[Prediction], list[tuple[int, Sample]]]:
    expected = 'no references: expected lines {"id": …, "references": […]}, in .csv and .tsv a header and rows'
    try:
        texts = read_predictions(predictions)
    except DocumentError as error:
        try:
            parse_rows(references, _reference, columns=COLUMNS, expected=expected)
        except DocumentError as other:
            problems = [f"{one.place}, {problem}" for one in (error, other) for problem in one.problems]
            raise DocumentError(f"{predictions} and {references}", problems) from None
        raise
    return texts, parse_rows(references, _reference, columns=COLUMNS, expected=expected)


def _reference(row: Row) -> tuple[int, Sample]:
    if "id" not in row.fields:
        raise BadRowError(f"no `id`; it has: {names_of(row.fields)}")
    answer_type = _optional(row, "answer_type")
    if answer_type not in (None, "closed", "open"):
        raise BadRowError(f"`answer_type` must be closed or open, or empty; found {answer_type[:40]!r}")
    named = {name: _optional(row, name) for name in row.fields if name.startswith(GROUP)}
    return row.line, Sample(
        id=row_id(row),
        images=(),
        references=_texts(row),
        question=_optional(row, "question"),
        answer_type=cast("Literal['closed', 'open'] | None", answer_type),
        groups={name.removeprefix(GROUP): value for name, value in named.items() if value is not None},
        cluster=_optional(row, "image") or "",
    )


def _texts(row: Row) -> tuple[str, ...]:
    given = [name for name in ("references", "reference") if name in row.fields]
    if len(given) != 1:
        problem = "both `references` and `reference`" if given else "no `references` and no `reference`"
        raise BadRowError(f"{problem}; it has: {names_of(row.fields)}")
    value = row.fields[given[0]]
    if given == ["reference"]:
        if not isinstance(value, str):
            raise BadRowError(f"`reference` must be a text, found {json.dumps(value)[:40]}")
        return (value,)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise BadRowError(f"`references` must be a list of one or more texts, found {json.dumps(value)[:40]}")
    return tuple(value)


def _optional(row: Row, name: str) -> str | None:
    value = row.fields.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, (str, int, float)):
        raise BadRowError(f"`{name}` must be a text, found {json.dumps(value)[:40]}")
    return str(value)
