"""pycocoevalcap's METEOR jar as a child that is kept: streamed, timed, started again once where it fails.

pycocoevalcap's client writes a line and waits for one; a jar that died, or that wrote two lines for a caption with a
line end in it, leaves it waiting for ever. Here one thread writes and one reads, each answer has a time limit, and an
answer that is not 23 numbers is a failure.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import tempfile
import threading
import weakref
from typing import IO, TYPE_CHECKING

from mhe import MetricUnavailableError
from mhe_metrics.java import FLAGS, INSTALL, find_jar, find_java

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NUMBERS = 23
HEAP = "-Xmx2g"
"""The whole paraphrase table takes about one gigabyte."""
START_SECONDS = 180.0
ANSWER_SECONDS = 60.0
WORDS_A_SECOND = 100
"""A caption of 10,000 words gets 100 s more."""


class JarFailedError(Exception):
    """The jar died, hung or answered with something else; the message says which."""


def score_line(answer: str, references: Sequence[str]) -> str:
    """One request: a single line, whatever the texts hold."""
    return " ||| ".join(("SCORE", *(safe_text(reference) for reference in references), safe_text(answer)))


def safe_text(text: str) -> str:
    """The text on one line, without the jar's separator, in characters that UTF-8 can carry."""
    joined = " ".join(text.splitlines()).replace("|||", " ")
    return joined.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class MeteorJar:
    """One METEOR process with one paraphrase table (None: the jar's own, whole one)."""

    def __init__(self, table: Path | None = None) -> None:
        jar = find_jar("meteor", "meteor-1.5.jar")
        self._command = [str(find_java()), *FLAGS, HEAP, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
        if table is not None:
            self._command += ["-a", str(table)]
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
