"""Progress with rate and remaining time, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mhe.cli.main import say

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 15.0


class ProgressLine:
    """`update(phase, done, total)` as often as one likes."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._start = time.monotonic()
        self._first = 0
        self._is_moving = False
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, phase: str, done: int, total: int, note: str = "", *, is_even: bool = True) -> None:
        """Tell how far a phase is; `note` is shown behind its name.

        `is_even` is false for parts of unequal cost, such as metrics: a rate over them would tell nothing.
        """
        if phase != self._phase:
            self._phase, self._start, self._first, self._is_moving = phase, time.monotonic(), done, False
        elif not self._is_moving and done > self._first:
            # The clock of the rate starts at the first step: what came before was loading.
            self._start, self._first, self._is_moving = time.monotonic(), done, True
        shown = f"{phase}, {note}" if note else phase
        if sys.stderr.isatty():
            self._draw(shown, done, total, is_even=is_even)
        elif time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            say(f"{self._title}: {shown} {done}/{total}{self._pace(done, total) if is_even else ''}")

    def _pace(self, done: int, total: int) -> str:
        seconds = time.monotonic() - self._start
        if done <= self._first or seconds <= 0:
            return ""
        rate = (done - self._first) / seconds
        return f", {rate:.1f}/s, {(total - done) / rate:.0f} s left"

    def _draw(self, phase: str, done: int, total: int, *, is_even: bool) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn() if is_even else TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=total, rate="")
        assert self._task is not None
        seconds = max(1e-9, time.monotonic() - self._start)
        self._bar.update(
            self._task,
            description=f"{self._title}: {phase}",
            completed=done,
            total=total,
            rate=f"{(done - self._first) / seconds:.1f}/s" if is_even and done > self._first else "",
        )
