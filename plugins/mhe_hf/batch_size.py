"""How many samples go together: as asked, or found while the run goes on. Imports nothing heavy."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_ROWS = 512
"""No batch grows beyond this: its images must lie in memory, and its answers are lost together."""
WORTHWHILE = 1.1
"""Twice the rows must give this many times the tokens a second, or the size stops growing."""
TIMES_MEASURED = 3
"""Batches that a size is judged by; the quickest counts, for what else the machine does only slows."""


class BatchSize:
    """The number of rows, and what came of each number so far.

    `has_room(wanted, tried)` says whether memory holds a batch of `wanted` rows, after one of `tried` ran.
    """

    def __init__(self, rows: int, *, grows: bool = False, has_room: Callable[[int, int], bool] | None = None) -> None:
        self.rows = rows
        """For the next batch."""
        self.limit: int | None = None
        """What memory was found to hold; None while it has not run out."""
        self._grows = self._is_found = grows
        self._samples: Counter[int] = Counter()
        self._tried = {rows}
        self._has_room = has_room
        self._is_warm = not grows
        self._speeds: dict[int, list[float]] = {}

    def answered(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch of `rows` took `seconds` for `tokens`, read and written."""
        self._samples[rows] += rows
        self._tried.add(self.rows)
        if not self._is_warm:
            # The first batch pays for what is compiled and allocated once.
            self._is_warm = True
            return
        if not self._grows or rows != self.rows or seconds <= 0:
            return
        speeds = self._speeds.setdefault(rows, [])
        speeds.append(tokens / seconds)
        if len(speeds) >= TIMES_MEASURED:
            self._judge(rows)

    def _judge(self, rows: int) -> None:
        speed, before = max(self._speeds[rows]), max(self._speeds.get(rows // 2, [0.0]))
        if speed < WORTHWHILE * before:
            self._grows = False
            self.rows = rows if speed > before else rows // 2
        elif 2 * rows > MOST_ROWS or (self._has_room is not None and not self._has_room(2 * rows, rows)):
            self._grows = False
        else:
            self.rows = 2 * rows

    def ran_out(self, rows: int) -> None:
        """Memory did not hold a batch of `rows` (2 or more): half of them from now on, and no growth."""
        self._grows = False
        self.rows = self.limit = min(self.rows, rows // 2)
        self._tried.add(self.rows)

    def used(self) -> tuple[int, int, int]:
        """The size of most samples (or the one that was asked for), the smallest and the largest.

        What was left over for a last batch is no size, unless there was nothing else.
        """
        sizes = [rows for rows in self._samples if rows in self._tried] or list(self._samples) or [self.rows]
        usual = max(sizes, key=lambda rows: self._samples[rows]) if self._is_found else self.rows
        return usual, min(sizes), max(sizes)
