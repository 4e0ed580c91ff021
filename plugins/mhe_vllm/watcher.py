"""Ends the engine's processes where this one is killed: vLLM's would stay, and hold the device's memory.

A small process waits for the end of a pipe that only this process holds open.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROGRAM = """
import os, signal, sys
sys.stdin.buffer.read()
for pid in map(int, sys.argv[1:]):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


def child_pids() -> list[int]:
    """Processes below this one, those of its children first."""
    import psutil

    return [process.pid for process in reversed(psutil.Process().children(recursive=True))]


class Watcher:
    """Kills `pids` when this process ends without having called `dismiss`."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *map(str, pids)],
            stdin=subprocess.PIPE,
            # An interrupt of the terminal is for the run, which then closes its engine itself.
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """End the watch. Nothing is killed."""
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
