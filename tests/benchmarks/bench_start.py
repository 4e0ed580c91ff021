"""Start-up: `mhe --help`, `mhe show tasks`, and the fixed cost of a 64-sample run with scripted answers.

Each is the median of several processes, beside a bare interpreter in the same run. Targets: 0.2 s, 0.3 s, 1 s. Peers
measured in their own environments needed 7.6 s (lm-eval 0.4.13) and 9.4 s (lmms-eval 0.7.3) for the 64 samples;
where `lm_eval` is installed here, its `--help` is measured as well.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPEATS = 9


def seconds_of(command: list[str], cwd: str, *, before=None) -> float:
    taken = []
    for _ in range(REPEATS):
        if before:
            before()
        start = time.perf_counter()
        subprocess.run(command, cwd=cwd, check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main() -> None:
    mhe = shutil.which("mhe", path=str(Path(sys.executable).parent)) or sys.exit("mhe is not installed")
    with tempfile.TemporaryDirectory() as folder:
        bare = seconds_of([sys.executable, "-c", "pass"], folder)
        rows = [("bare interpreter", bare, None)]
        rows.append(("mhe --help", seconds_of([mhe, "--help"], folder), 0.2))
        rows.append(("mhe show tasks", seconds_of([mhe, "show", "tasks"], folder), 0.3))
        run = [mhe, "eval", "--model", "scripted", "--task", "phantom-vqa", "--limit", "64"]
        forget = lambda: shutil.rmtree(Path(folder) / "runs", ignore_errors=True)  # noqa: E731
        rows.append(("64 samples, scripted", seconds_of(run, folder, before=forget), 1.0))
        rows.append(("the same again, done", seconds_of(run, folder), 1.0))
        if peer := shutil.which("lm_eval"):
            rows.append(("lm_eval --help", seconds_of([peer, "--help"], folder), None))
    print(f"{'what':24}{'seconds':>9}{'x bare':>9}{'target':>9}")
    for name, seconds, target in rows:
        print(f"{name:24}{seconds:9.3f}{seconds / bare:9.1f}{'' if target is None else f'{target:9.1f}'}")


if __name__ == "__main__":
    main()
