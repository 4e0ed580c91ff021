"""METEOR's jar under its own main class: what our client and main class are compared with."""

from __future__ import annotations

import gzip
import subprocess
from typing import TYPE_CHECKING

from mhe_metrics.java import FLAGS, find_jar, find_java

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def program_lines(lines: Sequence[str], table: Path | None = None) -> list[str]:
    """What the program answers to these lines; None: with its own paraphrases."""
    jar = find_jar("meteor", "meteor-1.5.jar")
    command = [find_java(), *FLAGS, "-Xmx2g", "-jar", jar, "-", "-", "-stdio", "-l", "en", "-norm"]
    if table is not None:
        command += ["-a", table]
    asked = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(command, input=asked.encode(), capture_output=True, check=True, cwd=jar.parent)
    return done.stdout.decode().splitlines()


def program_numbers(lines: Sequence[str], table: Path | None = None) -> list[list[float]]:
    """The 23 numbers of each line of `score_line`."""
    return [[float(word) for word in answer.split()] for answer in program_lines(lines, table)]


def program_scores(statistics: Sequence[Sequence[float]], folder: Path) -> tuple[list[float], float]:
    """The program's own scores of the samples and of the corpus, from its own statistics."""
    shown = " ||| ".join(" ".join(map(str, row)) for row in statistics)
    numbers = [float(line) for line in program_lines([f"EVAL ||| {shown}"], no_paraphrases(folder))]
    assert len(numbers) == len(statistics) + 1
    return numbers[:-1], numbers[-1]


def no_paraphrases(folder: Path) -> Path:
    """An empty table, which is read at once."""
    path = folder / "nothing.gz"
    with gzip.open(path, "wb"):
        pass
    return path
