"""pycocoevalcap's SPICE jar as one process a call: its class path put together here, nothing written beside it.

The jar's manifest looks for CoreNLP 3.6.0 in `lib` beside the jar, where pycocoevalcap's client downloads it to, into
the installed package; its other libraries are there. Here the class path names each file, CoreNLP's two from the
user's folder. The jar formats its output by a JavaScript engine that Java 15 and later do not have: the main class
`SpiceJson` (source beside it in `java_classes`) calls the same scorer and writes the same numbers without it. The
jar's cache of parses is not used: its serialiser does not run on Java 16 and later.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import MetricUnavailableError, file_digest
from mhe_metrics.java import CLASSES, FLAGS, INSTALL, find_jar, find_java
from mhe_metrics.meteor_jar import safe_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe_metrics.texts import CleanedCase

MAIN = "edu.anu.spice.SpiceJson"
ARCHIVE = "stanford-corenlp-full-2015-12-09.zip"
NEEDED: Mapping[str, Sequence[str]] = {
    "stanford-corenlp-3.6.0.jar": (
        "edu/stanford/nlp/pipeline/StanfordCoreNLP.class",
        "edu/stanford/nlp/semgraph/semgrex/SemgrexPattern.class",
    ),
    "stanford-corenlp-3.6.0-models.jar": (
        "edu/stanford/nlp/models/lexparser/englishPCFG.ser.gz",
        "edu/stanford/nlp/models/ner/english.all.3class.distsim.crf.ser.gz",
    ),
}
"""CoreNLP's files, and what SPICE reads from each."""
START_SECONDS = 600.0
"""Loading the models takes up to a minute on a slow disk."""
SECONDS_A_TEXT = 2.0
MOST = 2.0
"""Recall has no bound in SPICE, precision is at most 1: F stays below 2."""


def find_corenlp(folder: str | None) -> list[Path]:
    """CoreNLP's jars in the user's folder, each looked into. Raises `MetricUnavailableError` with what is missing."""
    names = " and ".join(NEEDED)
    if folder is None:
        raise MetricUnavailableError(
            f"SPICE needs CoreNLP 3.6.0: --set metrics.spice.corenlp_dir=FOLDER with {names} (of {ARCHIVE})"
        )
    place = Path(folder).expanduser()
    missing = [name for name in NEEDED if not (place / name).is_file()]
    if missing:
        there = sorted(path.name for path in place.glob("*.jar")) if place.is_dir() else None
        found = "there is no such folder" if there is None else f"its jars are: {', '.join(there) or 'none'}"
        raise MetricUnavailableError(
            f"metrics.spice.corenlp_dir={folder}: {' and '.join(missing)} missing ({found}); {ARCHIVE} has them"
        )
    for name, entries in NEEDED.items():
        _check_jar(place / name, entries)
    return [place / name for name in NEEDED]


def _check_jar(jar: Path, entries: Sequence[str]) -> None:
    try:
        with zipfile.ZipFile(jar) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError) as error:
        raise MetricUnavailableError(f"{jar} is not a jar file ({error}); take it from {ARCHIVE} again") from None
    if missing := [entry for entry in entries if entry not in names]:
        raise MetricUnavailableError(f"{jar} does not hold {', '.join(missing)}; take it from {ARCHIVE} again")


def jar_digests(jars: Sequence[Path]) -> dict[str, str]:
    """Hex SHA-256 by file name. Raises `MetricUnavailableError` where one cannot be read."""
    try:
        return {jar.name: file_digest(jar) for jar in jars}
    except OSError as error:
        raise MetricUnavailableError(f"{error.filename} cannot be read ({error.strerror})") from None


class SpiceJar:
    """SPICE with the user's CoreNLP."""

    def __init__(self, corenlp: Sequence[Path], *, java: str | None, heap_gigabytes: int) -> None:
        """`java` is a program of one's choice; None: the one that `find_java` finds."""
        self._jar = find_jar("spice", "spice-1.0.jar")
        self._corenlp = corenlp
        self._java = java
        self._heap = heap_gigabytes

    def ask(self, texts: Sequence[CleanedCase]) -> list[float]:
        """The F-score over all tuples of each case, in the same order.

        Raises `MetricUnavailableError` where Java fails, does not end in time, or answers with something else.
        """
        entries = [
            {"image_id": number, "test": safe_text(text.answer), "refs": [safe_text(r) for r in text.references]}
            for number, text in enumerate(texts)
        ]
        seconds = START_SECONDS + SECONDS_A_TEXT * sum(1 + len(text.references) for text in texts)
        with tempfile.TemporaryDirectory(prefix="mhe-spice-") as folder:
            given, made = Path(folder) / "input.json", Path(folder) / "output.json"
            # ASCII alone, so that no Java reads it in a character set of its own.
            given.write_text(json.dumps(entries), encoding="ascii")
            told = self._run([str(given), "-out", str(made), "-silent"], Path(folder), seconds)
            try:
                answer = made.read_bytes()
            except OSError:
                raise MetricUnavailableError(f"SPICE's Java program wrote no result: {told}") from None
        return _scores(answer, len(texts))

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The whole command line."""
        libraries = [jar for jar in sorted((self._jar.parent / "lib").glob("*.jar")) if jar.name not in NEEDED]
        # The user's CoreNLP comes first: the manifest of SPICE's jar counts here too, and the copy of CoreNLP that
        # pycocoevalcap may have downloaded is not the one whose digest stands in the record.
        path = os.pathsep.join(str(entry) for entry in (CLASSES, *self._corenlp, self._jar, *libraries))
        java = self._java or str(find_java())
        return [java, *FLAGS, f"-Xmx{self._heap}g", "-cp", path, MAIN, *arguments]

    def _run(self, arguments: Sequence[str], folder: Path, seconds: float) -> str:
        command = self.command(arguments)
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False, cwd=folder
            )
        except subprocess.TimeoutExpired:
            raise MetricUnavailableError(
                f"SPICE's Java program did not end within {seconds:.0f} s and was stopped"
            ) from None
        except OSError as error:
            raise MetricUnavailableError(f"{command[0]} cannot be started ({error.strerror}): {INSTALL}") from None
        told = _cause(done.stderr.decode("utf-8", "replace"))
        if done.returncode != 0:
            raise MetricUnavailableError(f"SPICE's Java program ended with status {done.returncode}: {told}")
        return told


def _cause(errors: str) -> str:
    """The line of Java's messages that says why: the innermost cause of a stack trace, else the last line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:")]
    thrown = [line for line in lines if line.startswith("Exception in thread")]
    return (causes[-1:] or thrown[-1:] or lines[-1:] or ["no message"])[0]


def _scores(answer: bytes, count: int) -> list[float]:
    """The scores in the order of the numbers that the cases were given."""
    try:
        found = {item["image_id"]: float(item["scores"]["All"]["f"]) for item in json.loads(answer)}
        scores = [found[number] for number in range(count)]
    except (ValueError, KeyError, TypeError):
        raise MetricUnavailableError(
            f"SPICE's Java program answered {answer[:100]!r} in place of {count} scores"
        ) from None
    if not all(0 <= score < MOST for score in scores):
        raise MetricUnavailableError(f"SPICE's Java program answered with scores outside 0 to {MOST:g}")
    return scores
