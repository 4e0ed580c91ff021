"""Text on a generated page: nothing that comes from a run can break a table or become markup."""

from __future__ import annotations

import math
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MARKUP = str.maketrans({c: f"\\{c}" for c in "\\`*_[]|~#"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})
LONGEST_TEXT = 400
DASH = "–"


def plain_line(text: str, longest: int = LONGEST_TEXT) -> str:
    """One line without control characters and direction marks, cut at `longest` characters."""
    # "C": control, format (direction marks), surrogates; "Zl", "Zp": line and paragraph separators.
    kept = (" " if unicodedata.category(c)[0] == "C" or unicodedata.category(c) in {"Zl", "Zp"} else c for c in text)
    line = " ".join("".join(kept).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def escaped(text: str, longest: int = LONGEST_TEXT) -> str:
    """Text as it was written, in a paragraph or a cell of a table."""
    return plain_line(text, longest).translate(_MARKUP)


def code(text: str, longest: int = LONGEST_TEXT) -> str:
    """Inline code; also inside tables."""
    line = plain_line(text, longest).replace("`", "'").replace("|", "¦")
    return f"`{line}`" if line else DASH


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """A table whose cells are markdown already; columns with `right` are set to the right."""
    marks = ["---:" if is_right else ":---" for is_right in right]
    return [_row(head), _row(marks), *[_row(row) for row in rows]]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def fixed(value: float, decimals: int = 3) -> str:
    """Fixed decimals; a rounded zero has no sign."""
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def short_number(value: float | None, cost: str) -> str:
    """A cost as people read it: `1.02 M`, `4.1 MB`, `38 ms`."""
    if value is None:
        return DASH
    if cost in _OWN_WAY:
        return _OWN_WAY[cost](value)
    unit = "B" if cost in {"bytes", "peak memory", "training memory"} else ""
    for factor, prefix in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")]:
        if value >= factor:
            return f"{three_digits(value / factor)} {prefix}{unit}"
    return f"{three_digits(value)} {unit}".strip()


def three_digits(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(decimals, 6)}f}"


def _seconds(value: float) -> str:
    return f"{three_digits(value * 1000)} ms" if value < 1 else f"{three_digits(value)} s"


_OWN_WAY: dict[str, Callable[[float], str]] = {
    "samples/s": three_digits,
    "bits per weight": three_digits,
    "latency p50": _seconds,
    "training time": _seconds,
    "trained share": lambda value: f"{100 * value:.3f} %",
}
