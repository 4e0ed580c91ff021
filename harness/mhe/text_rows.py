"""Rows of a text file with their line numbers: JSON lines, or a table with a header. All problems at once.

The file's ending decides: `.csv` is a table with commas, `.tsv` one with tabs (fields quoted as spreadsheets do, so
that a text may hold commas, tabs and line ends), anything else JSON lines.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mhe.errors import DocumentError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

SHOWN = 10
"""Items listed of each problem; the rest is counted."""
DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a file; in a table a row may go over several, and `line` is its first."""

    line: int
    fields: Mapping[str, object]
    """Name to value: any JSON value, in a table a text."""


class BadRowError(Exception):
    """Why a row is not what was expected."""


@dataclass(frozen=True, slots=True)
class _BadRow:
    line: int
    reason: str


def parse_rows(
    path: Path, parse: Callable[[Row], T], *, columns: Mapping[str, Sequence[str]], expected: str
) -> list[T]:
    """What `parse` makes of each row, in order; blank lines are passed over.

    `columns` are the fields that a table must have, each with the names under which its header may have it, best
    first and without regard to case; `parse` finds them under their own names. `parse` raises `BadRowError`.
    Raises `UserError` for a file that cannot be read, and `DocumentError` with every bad row, or where there is
    none (`expected` says what should be there).
    """
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    delimiter = DELIMITERS.get(path.suffix.lower())
    rows = _json_rows(content) if delimiter is None else _table_rows(content, delimiter, columns)
    found, problems = [], []
    for row in rows:
        if isinstance(row, _BadRow):
            problems.append(f"line {row.line}: {row.reason}")
            continue
        try:
            found.append(parse(row))
        except BadRowError as error:
            problems.append(f"line {row.line}: {error}")
    if problems:
        raise DocumentError(str(path), shortened(problems, "more lines of this kind"))
    if not found:
        raise DocumentError(str(path), [expected])
    return found


def row_id(row: Row) -> str:
    """The row's `id` as a text; a whole number will do. Raises `BadRowError`."""
    name = row.fields["id"]
    if isinstance(name, bool) or not isinstance(name, (str, int)) or name == "":
        raise BadRowError(f"`id` must be a text or a whole number, found {json.dumps(name)[:40]}")
    return str(name)


def names_of(fields: Iterable[str]) -> str:
    """Names of fields for a message."""
    return ", ".join(f"`{name[:30]}`" for name in list(fields)[:SHOWN]) or "nothing"


def shortened(items: Sequence[str], what: str) -> list[str]:
    """The first items, and the number of the rest."""
    rest = len(items) - SHOWN
    return [*items[:SHOWN], *([f"… and {rest} {what}"] if rest > 0 else [])]


def _json_rows(content: bytes) -> Iterator[Row | _BadRow]:
    # Lines end at \n alone: a text may hold U+2028 and the like.
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield _BadRow(number, _not_utf8(error))
        except json.JSONDecodeError as error:
            yield _BadRow(number, f"not JSON ({error.msg} at column {error.colno})")
        except RecursionError:
            yield _BadRow(number, "not JSON of ours (nested too deeply)")
        else:
            if isinstance(fields, dict):
                yield Row(number, fields)
            else:
                yield _BadRow(number, f"expected an object, found {type(fields).__name__}")


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 ({error.reason} at byte {error.start})"


def _table_rows(content: bytes, delimiter: str, columns: Mapping[str, Sequence[str]]) -> Iterator[Row | _BadRow]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        yield from _undecodable_lines(content)
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # Beyond a broken quote nothing can be told apart.
            yield _BadRow(line, f"not a row of a table ({error}); a quote inside a quoted field is written twice")
            return
        if not cells:
            continue
        if header is None:
            header, reason = _header(cells, columns)
            if reason:
                yield _BadRow(line, reason)
                return
        elif len(cells) != len(header):
            yield _BadRow(
                line,
                f"{len(cells)} fields where the header has {len(header)}; quote a text that holds the separator",
            )
        else:
            yield Row(line, dict(zip(header, cells, strict=True)))


def _header(cells: Sequence[str], columns: Mapping[str, Sequence[str]]) -> tuple[list[str], str]:
    """The columns' names, the expected ones under their own; and what is wrong with them."""
    header = [cell.strip() for cell in cells]
    lowered = [name.casefold() for name in header]
    if doubled := sorted({name for name in lowered if lowered.count(name) > 1}):
        return header, f"columns more than once in the header: {names_of(doubled)}"
    missing = []
    for wanted, aliases in columns.items():
        place = next((lowered.index(alias) for alias in aliases if alias in lowered), None)
        if place is None:
            missing.append(" or ".join(f"`{alias}`" for alias in aliases))
        else:
            header[place] = wanted
    if missing:
        return header, f"expected a header with {' and '.join(missing)}, found {names_of(header)}"
    return header, ""


def _undecodable_lines(content: bytes) -> Iterator[_BadRow]:
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield _BadRow(number, _not_utf8(error))
