"""Set up an environment with the harness that `make bench` compares with: `python install_peers.py FOLDER`.

lmms-eval pins and brings what mhe does not want, so it has an environment of its own. torch comes first and alone:
asked for by lmms-eval, it would be the newest build with its CUDA packages. Where something cannot be installed, the
reason is written into FOLDER/why-not.txt for the benchmark to say, and the status is 0 all the same: the other
benchmarks need none of it. An environment that was set up by the same list is left as it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

PEERS = ("lmms-eval==0.7.3", "decord")
"""lmms-eval's `llava_hf` imports decord, and lmms-eval does not ask for it."""
MEND = Path(__file__).with_name("mend_torch_companions.py")
WHY_NOT = "why-not.txt"
STAMP = "installed.txt"
LINES = 8


def steps(folder: Path, torch: str) -> list[list[str]]:
    """The commands, in order."""
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [
        [sys.executable, "-m", "venv", str(folder)],
        [*install, torch],
        [*install, torch, *PEERS],
        [python, str(MEND)],
        [python, "-c", "import lmms_eval.models.simple.llava_hf"],
    ]


def install(folder: Path, commands: list[list[str]]) -> str:
    """Run the commands; the reason why one failed, or nothing."""
    for command in commands:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
        )
        if done.returncode:
            last = "\n".join(done.stdout.strip().splitlines()[-LINES:])
            return f"{' '.join(command)} ended with status {done.returncode}:\n{last}\n"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Run the command: 0 also where the peers cannot be installed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", default="torch==2.13.0")
    asked = parser.parse_args(arguments)
    stamp, why_not = asked.folder / STAMP, asked.folder / WHY_NOT
    wanted = "\n".join((asked.torch, *PEERS)) + "\n"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted:
        return 0
    stamp.unlink(missing_ok=True)
    fault = install(asked.folder, steps(asked.folder, asked.torch))
    asked.folder.mkdir(parents=True, exist_ok=True)
    if fault:
        why_not.write_text(fault, encoding="utf-8")
        print(f"the benchmark goes without its peers: {fault}", file=sys.stderr)
        return 0
    why_not.unlink(missing_ok=True)
    stamp.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
