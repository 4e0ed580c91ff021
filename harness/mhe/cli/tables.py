"""Tables on stdout: drawn with rich on a terminal, aligned plain text where a program or a file reads."""

from __future__ import annotations

import sys
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


def width_of(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def plain_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """Columns aligned by blanks; those whose index is in `right` are flush right. No final newline."""
    cells = [[" ".join(str(cell).split()) for cell in row] for row in [headers, *rows]]
    widths = [max(width_of(row[i]) for row in cells) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        parts = []
        for i, cell in enumerate(row):
            gap = " " * (widths[i] - width_of(cell))
            parts.append(gap + cell if i in right else cell + gap)
        return "  ".join(parts).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * width for width in widths), *(line(row) for row in cells[1:])])


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", right: Collection[int] = ()
) -> str:
    """A table for stdout, as that is a terminal or not."""
    if not sys.stdout.isatty():
        text = plain_table(headers, rows, right=right)
        return f"{title}\n\n{text}" if title else text
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, title=Text(title, style="bold") if title else None, title_justify="left")
    for i, header in enumerate(headers):
        # The first column holds the name that one types next: it must not be broken over two lines.
        drawn.add_column(Text(header), justify="right" if i in right else "left", overflow="fold", no_wrap=i == 0)
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    with console.capture() as captured:
        console.print(drawn)
    return captured.get().rstrip("\n")
