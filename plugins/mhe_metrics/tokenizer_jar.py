"""Stanford's tokenizer as a child that is kept, although it answers in blocks of 8 KB and has no request for "now".

A batch goes to it between two lines of its own, and lines of filling follow that push its answers out of every
buffer: three of 8 KB lie on the way. What is left of the filling comes out before the next batch's first line and is
skipped. Answers are counted, so that a text that looks like one of these lines is only a text.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import tempfile
import threading
import time
import weakref
from typing import IO, TYPE_CHECKING

from mhe_metrics.java import FLAGS, find_jar, find_java

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TOKENIZER = ("tokenizer", "stanford-corenlp-3.4.1.jar")
ARGUMENTS = ("edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase")
FILLING = ("x" * 1000 + "\n") * 40
BLOCK = 1 << 16


class TokenizerFailedError(Exception):
    """The tokenizer died, hung or answered out of step; the message says which."""


def find_tokenizer() -> Path:
    """The jar. Raises `MetricUnavailableError`."""
    return find_jar(*TOKENIZER)


class TokenizerJar:
    """One tokenizer process. Raises `MetricUnavailableError` without Java or the jar, `OSError` if it cannot start."""

    def __init__(self) -> None:
        jar = find_tokenizer()
        command = [str(find_java()), *FLAGS, "-cp", str(jar), *ARGUMENTS]
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            command, cwd=jar.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        self._blocks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = b""
        self._batches = 0
        stdout = self._process.stdout
        assert stdout is not None
        threading.Thread(target=_read, args=(stdout, self._blocks), daemon=True).start()
        # Also at the end of the interpreter: no Java outlives it.
        self._end = weakref.finalize(self, _end, self._process, self._errors)

    def ask(self, lines: Sequence[str], *, timeout: float) -> list[str]:
        """The line of tokens of each line, all within `timeout` seconds. Raises `TokenizerFailedError`."""
        self._batches += 1
        mark = _mark(self._batches)
        stdin = self._process.stdin
        assert stdin is not None
        text = "".join(f"{line}\n" for line in (mark, *lines, mark)) + FILLING
        threading.Thread(target=_write, args=(stdin, text.encode()), daemon=True).start()
        deadline = time.monotonic() + timeout
        while self._next(1, deadline) != [mark]:
            pass  # the filling of the batch before
        found = self._next(len(lines), deadline)
        if self._next(1, deadline) != [mark]:
            raise TokenizerFailedError(f"gave another number of lines than {len(lines)}")
        return found

    def _next(self, count: int, deadline: float) -> list[str]:
        parts, missing = [self._rest], count - self._rest.count(b"\n")
        while missing > 0:
            try:
                block = self._blocks.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TokenizerFailedError("did not end in time") from None
            if not block:
                raise TokenizerFailedError("ended")
            parts.append(block)
            missing -= block.count(b"\n")
        *found, self._rest = b"".join(parts).split(b"\n", count)
        return [line.decode("utf-8", "replace").rstrip() for line in found]

    def close(self) -> None:
        """End the process."""
        self._end()


def _mark(number: int) -> str:
    """A word of small letters, another for each number."""
    return "mark" + "".join(chr(ord("a") + int(digit)) for digit in str(number))


def _read(stream: IO[bytes], blocks: queue.SimpleQueue[bytes]) -> None:
    """Every block that the tokenizer writes; an empty one means that it ended."""
    while block := stream.read1(BLOCK):  # type: ignore[attr-defined]
        blocks.put(block)
    blocks.put(b"")
    stream.close()


def _write(stream: IO[bytes], text: bytes) -> None:
    # If the tokenizer is gone or was ended, the reader's side says so.
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):  # what was left to write has no reader any more
            process.stdin.close()
    errors.close()
