"""pycocoevalcap's METEOR jar as a child that is kept: streamed, timed, started again once where it fails.

pycocoevalcap's client writes a line and waits for one; a jar that died, or that wrote two lines for a caption with a
line end in it, leaves it waiting for ever. Here one thread writes and one reads, each answer has a time limit, and an
answer that is not 23 numbers is a failure.

The child's main class is `MeteorLines` (source beside it in `java_classes`), which gives the jar's scorer one thread a
core and leaves out its normaliser, half of its time, where that changes nothing. It writes what the jar's own main
class writes.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter
from itertools import zip_longest
from typing import IO, TYPE_CHECKING

from mhe import MetricUnavailableError
from mhe_metrics.java import CLASSES, FLAGS, INSTALL, find_jar, find_java

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NUMBERS = 23
WORD = re.compile(r"\w+|[^\w\s]")
MOST_PAIRS = 20_000
"""Of equal words. The jar keeps a beam of alignments of all of them: 90,000 took it 5 s and 500 MB, 250,000 (a word
500 times on both sides) 12 s and all of its 2 GB. Two captions of 30 words have some 100."""
HEAP = "-Xmx2g"
"""The whole paraphrase table takes about one gigabyte."""
MAIN = "mhe.MeteorLines"
MOST_THREADS = 8
START_SECONDS = 180.0
ANSWER_SECONDS = 60.0
WORDS_A_SECOND = 100
"""A caption of 10,000 words gets 100 s more."""


class JarFailedError(Exception):
    """The jar died, hung or answered with something else; the message says which."""


def score_line(answer: str, references: Sequence[str]) -> str:
    """One request: a single line, whatever the texts hold.

    All are cut to as many of their first words as leave the answer and any reference `MOST_PAIRS` pairs of equal words.
    """
    texts = [safe_text(reference) for reference in references]
    words = min((_comparable_words(answer, text) for text in texts), default=sys.maxsize)
    if words < sys.maxsize:
        texts, answer = [_first(text, words) for text in texts], _first(safe_text(answer), words)
    return " ||| ".join(("SCORE", *texts, safe_text(answer)))


def _comparable_words(answer: str, reference: str) -> int:
    """How many first words of both have at most `MOST_PAIRS` pairs of equal words; `sys.maxsize` where all have."""
    if (len(answer) + 1) * (len(reference) + 1) <= 4 * MOST_PAIRS:
        return sys.maxsize
    ours, theirs = WORD.findall(answer.lower()), WORD.findall(reference.lower())
    counted = Counter(theirs)
    if sum(count * counted[word] for word, count in Counter(ours).items()) <= MOST_PAIRS:
        return sys.maxsize
    pairs = 0
    seen: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for place, (word, counterpart) in enumerate(zip_longest(ours, theirs)):
        if word is not None:
            seen[word] += 1
            pairs += other[word]
        if counterpart is not None:
            other[counterpart] += 1
            pairs += seen[counterpart]
        if pairs > MOST_PAIRS:
            return place
    return sys.maxsize


def _first(text: str, words: int) -> str:
    for place, found in enumerate(WORD.finditer(text), 1):
        if place == words:
            return text[: found.end()]
    return text


def safe_text(text: str) -> str:
    """The text on one line, without the jar's separator, in characters that UTF-8 can carry."""
    if text.isascii() and text.isprintable() and "|||" not in text:
        return text
    joined = " ".join(text.splitlines()).replace("|||", " ")
    return joined.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class MeteorJar:
    """One METEOR process with one paraphrase table (None: the jar's own, whole one)."""

    def __init__(self, table: Path | None = None) -> None:
        jar = find_jar("meteor", "meteor-1.5.jar")
        path = os.pathsep.join((str(CLASSES), str(jar)))
        self._command = [str(find_java()), *FLAGS, HEAP, "-cp", path, MAIN, str(min(_cores(), MOST_THREADS))]
        if table is not None:
            self._command.append(str(table))
        self._folder = jar.parent
        self._child: _Child | None = None

    def ask(self, lines: Sequence[str]) -> list[list[float]]:
        """The 23 numbers that the jar answers to each line of `score_line`.

        A jar that fails is started again once, from the line that it failed at. Raises `MetricUnavailableError`
        where it fails at the same call again.
        """
        answers: list[list[float]] = []
        failures: list[str] = []
        while len(answers) < len(lines):
            try:
                if self._child is None:
                    self._child = _Child(self._command, self._folder)
                self._child.ask(lines[len(answers) :], answers)
            except JarFailedError as error:
                self.close()
                failures.append(str(error))
                if len(failures) == 2:
                    raise MetricUnavailableError(
                        f"METEOR's Java program failed twice; at pair {len(answers) + 1} of {len(lines)} it {error}"
                    ) from None
        return answers

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
            self._child = None


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Child:
    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        try:
            self._process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
            )
        except OSError as error:
            self._errors.close()
            raise MetricUnavailableError(f"{command[0]} cannot be started ({error.strerror}): {INSTALL}") from None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._is_fresh = True
        stdout = self._process.stdout
        assert stdout is not None
        threading.Thread(target=_read, args=(stdout, self._answers), daemon=True).start()
        # Also at the end of the interpreter: no Java outlives it.
        self._end = weakref.finalize(self, _end, self._process, self._errors)

    def ask(self, lines: Sequence[str], answers: list[list[float]]) -> None:
        """Append the answer to each line to `answers`, as they come. Raises `JarFailedError`."""
        stdin = self._process.stdin
        assert stdin is not None
        writer = threading.Thread(target=_write, args=(stdin, list(lines)), daemon=True)
        writer.start()
        for line in lines:
            seconds = ANSWER_SECONDS + line.count(" ") / WORDS_A_SECOND + (START_SECONDS if self._is_fresh else 0)
            try:
                answer = self._answers.get(timeout=seconds)
            except queue.Empty:
                raise JarFailedError(f"did not answer within {seconds:.0f} s") from None
            if not answer:
                raise JarFailedError(f"ended: {self._last_words()}")
            self._is_fresh = False
            answers.append(_numbers(answer))
        writer.join()

    def _last_words(self) -> str:
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its output was closed"
        self._errors.seek(0)
        told = [line for line in self._errors.read().decode("utf-8", "replace").splitlines() if line[:1].strip()]
        return f"status {status}, {told[-1] if told else 'no message'}"

    def close(self) -> None:
        self._end()


def _read(stream: IO[bytes], answers: queue.SimpleQueue[bytes]) -> None:
    """Every line of the jar; an empty one means that it ended."""
    for line in stream:
        answers.put(line)
    answers.put(b"")
    stream.close()


def _write(stream: IO[bytes], lines: list[str]) -> None:
    try:
        for line in lines:
            stream.write(f"{line}\n".encode())
        stream.flush()
    except (OSError, ValueError):
        # The jar is gone or was ended: the reader's side says so, with the reason.
        return


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # what was left to write has no reader any more
            process.stdin.close()
    errors.close()


def _numbers(answer: bytes) -> list[float]:
    text = answer.decode("utf-8", "replace").strip()
    try:
        numbers = [float(word) for word in text.split(" ")]
    except ValueError:
        numbers = []
    if len(numbers) != NUMBERS:
        raise JarFailedError(f"answered {text[:100]!r} in place of {NUMBERS} numbers")
    return numbers
