"""lmms-eval's `llava_hf` in a process of its own environment, asked for a round at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Request

SCRIPT = Path(__file__).with_name("peer_llava.py")
ENVIRONMENT = Path(f"{sys.prefix}-peers")
"""Beside the environment of the Python that runs this; `make bench` sets it up."""
LINES = 8


class PeerMissingError(Exception):
    """There is no peer to compare with; says why."""


class Peer:
    """Holds the model loaded between rounds. Raises `PeerMissingError`; close it."""

    def __init__(self, model: Path, requests: Sequence[Request], limit: int, threads: int) -> None:
        python = ENVIRONMENT / "bin" / "python"
        if not (ENVIRONMENT / "installed.txt").is_file():
            told = ENVIRONMENT / "why-not.txt"
            reason = told.read_text(encoding="utf-8") if told.is_file() else "make peers sets it up"
            raise PeerMissingError(f"lmms-eval is not installed in {ENVIRONMENT}: {reason.strip()}")
        self._folder = tempfile.TemporaryDirectory(prefix="mhe-bench-")
        asked = Path(self._folder.name, "requests.json")
        rows = [{"text": r.messages[0].text, "image": str(r.images[0].source.path)} for r in requests]
        asked.write_text(json.dumps(rows), encoding="utf-8")
        self._noise = Path(self._folder.name, "stderr.txt")
        command = [str(python), str(SCRIPT), str(model), str(asked)]
        with self._noise.open("w", encoding="utf-8") as noise:
            self._process = subprocess.Popen(
                [*command, "--max-new-tokens", str(limit), "--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=noise,
                text=True,
                # It has no need of what is installed here.
                env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
            )
        try:
            self.described = self._line()
        except PeerMissingError:
            self.close()
            raise

    def _line(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            last = "\n".join(self._noise.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LINES:])
            raise PeerMissingError(f"lmms-eval's llava_hf ended with status {self._process.wait()}: {last}")
        return json.loads(line)

    def answer(self, many: int) -> tuple[float, float, list[str]]:
        """Seconds of its `generate_until` over the first `many` requests, those of its threads, and the answers."""
        self._process.stdin.write(f"{many}\n")
        self._process.stdin.flush()
        told = self._line()
        return told["seconds"], told["processor_seconds"], told["texts"]

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()
