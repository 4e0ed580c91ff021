"""The part of a board's page that shows the value that ranks by group: modality, organ, question type."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mhe.boards.markdown import DASH, code, escaped, fixed, table
from mhe.boards.results import score_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.boards.results import Row
    from mhe.documents.board import BoardTask


def group_lines(task: BoardTask, rows: Sequence[Row]) -> list[str]:
    """A table for each group of the task, entrants in the order of the main table; nothing where there are none."""
    lines: list[str] = []
    for group in sorted({name for row in rows for entry in row.entries for name in entry.scores.samples.groups}):
        counts = _counts(group, rows)
        if not counts:
            continue
        head = ["Entrant", *[f"{escaped(label)} ({counts[label]})" for label in sorted(counts)]]
        cells = [
            [escaped(row.entrant.name), *[_value(task, row, group, label) for label in sorted(counts)]] for row in rows
        ]
        lines += [f"By {code(group)}:", "", *table(head, cells, [False, *[True] * len(counts)]), ""]
    if not lines:
        return []
    about = (
        f"{code(task.primary)} over the samples of each group, mean over seeds; in brackets the number of samples. "
        f"{DASH}: none of the kind that the value counts. Not ranked: small groups differ by chance."
    )
    return ["### By group", "", about, "", *lines]


def _counts(group: str, rows: Sequence[Row]) -> Counter[str]:
    """Samples of each label, in the first entry that has the group: all entries are over the same samples."""
    for row in rows:
        for entry in row.entries:
            if group in entry.scores.samples.groups:
                return Counter(label for label in entry.scores.samples.groups[group] if label is not None)
    return Counter()


def _value(task: BoardTask, row: Row, group: str, label: str) -> str:
    scores = [score_of(entry, task, task.primary) for entry in row.entries]
    found = [score.groups.get(group, {}).get(label) if score is not None else None for score in scores]
    known = [value for value in found if value is not None]
    return fixed(sum(known) / len(known)) if known and len(known) == len(found) else DASH
