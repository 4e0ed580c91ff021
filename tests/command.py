"""Running `mhe` as a user does: a process of its own, its output and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict:
        """The one JSON document on stdout."""
        return json.loads(self.out)


def mhe(*arguments: object, cwd: Path, timeout: float = 300, **environment: str) -> Done:
    done = subprocess.run(
        [sys.executable, "-m", "mhe.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "MHE_CACHE_DIR": str(cwd / ".cache"), **environment},
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)
