"""`make bench`: every benchmark of this folder, one after the other; each prints its own ratios."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def main() -> int:
    scripts = sorted(Path(__file__).parent.glob("bench_*.py"))
    assert scripts, "no benchmark was found"
    failed = []
    for script in scripts:
        print(f"\n== {script.stem.removeprefix('bench_')}", flush=True)
        paths = [str(script.parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        if subprocess.run([sys.executable, str(script)], env=environment, check=False).returncode:
            failed.append(script.stem)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
