"""Predictions made elsewhere: JSON lines joined to samples by id, never by position, all problems at once."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.answers import extract_answer
from mhe.errors import DocumentError, UserError
from mhe.values import Case

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from mhe.samples import SampleSet

SHOWN = 10
"""Ids listed of each problem; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of a predictions file."""

    line: int
    id: str
    text: str


class _BadLineError(Exception):
    """Why a line is no prediction."""


def read_predictions(path: Path) -> list[Prediction]:
    """The lines `{"id": …, "prediction": …}` of a file, in order; blank lines and other keys are passed over.

    An id may be written as a whole number. Raises `UserError` for a file that cannot be read and `DocumentError`
    with every line that is not a prediction.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    found, problems = [], []
    # Lines end at \n alone: a text may hold U+2028 and the like.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(_prediction(number, line))
        except _BadLineError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise DocumentError(str(path), _shortened(problems, "more lines of this kind"))
    if not found:
        raise DocumentError(str(path), ['no predictions: expected lines {"id": …, "prediction": …}'])
    return found


def _prediction(number: int, line: bytes) -> Prediction:
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _BadLineError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise _BadLineError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise _BadLineError("not a prediction (nested too deeply)") from None
    if not isinstance(content, dict):
        raise _BadLineError(f"expected an object with `id` and `prediction`, found {type(content).__name__}")
    missing = [name for name in ("id", "prediction") if name not in content]
    if missing:
        raise _BadLineError(f"no {' and no '.join(f'`{name}`' for name in missing)}; it has: {_names(content)}")
    name, text = content["id"], content["prediction"]
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise _BadLineError(f"`id` must be a text or a whole number, found {json.dumps(name)[:40]}")
    if not isinstance(text, str):
        hint = "; leave out what has no answer and pass --allow-partial" if text is None else ""
        raise _BadLineError(f"`prediction` must be a text, found {json.dumps(text)[:40]}{hint}")
    return Prediction(number, str(name), text)


def _names(content: dict[str, object]) -> str:
    return ", ".join(f"`{name[:30]}`" for name in list(content)[:SHOWN]) or "nothing"


def join_predictions(
    path: Path, predictions: Sequence[Prediction], data: SampleSet, *, allow_partial: bool = False
) -> list[Case]:
    """Cases in the order of the samples, with answers taken from the texts by the task's own rule.

    Raises `DocumentError` listing unknown and doubled ids, and missing ones unless `allow_partial`.
    """
    lines: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        lines[prediction.id].append(prediction)
    known = {sample.id for sample in data.samples}
    problems = []
    if doubled := [
        f"{name!r} (lines {_and(p.line for p in group)})" for name, group in lines.items() if len(group) > 1
    ]:
        problems.append(f"{_count(doubled, 'id')} more than once: {_list(doubled)}")
    if unknown := [f"{name!r} (line {group[0].line})" for name, group in lines.items() if name not in known]:
        problems.append(
            f"{_count(unknown, 'id')} not in {data.task.name}, split {data.split}"
            f"{f', first {data.record.limit}' if data.record.limit else ''}: {_list(unknown)}"
        )
    missing = [repr(sample.id) for sample in data.samples if sample.id not in lines]
    if missing and not allow_partial:
        problems.append(
            f"{_count(missing, 'sample')} without a prediction: {_list(missing)}. "
            "Pass --allow-partial to score what is there."
        )
    if problems:
        raise DocumentError(str(path), problems)
    return [
        Case(sample, extract_answer(data.task.answer, lines[sample.id][0].text))
        for sample in data.samples
        if sample.id in lines
    ]


def _count(items: Sequence[str], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _list(items: Sequence[str]) -> str:
    return ", ".join(_shortened(items, "more"))


def _shortened(items: Sequence[str], what: str) -> list[str]:
    rest = len(items) - SHOWN
    return [*items[:SHOWN], *([f"… and {rest} {what}"] if rest > 0 else [])]


def _and(numbers: Iterable[int]) -> str:
    *others, last = [str(number) for number in numbers]
    return f"{', '.join(others)} and {last}"
