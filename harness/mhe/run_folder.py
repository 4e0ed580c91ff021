"""A run on disk: appended as answers come, locked, repaired after a kill, finished by a rename.

RUNS/<task>/<model>/<first 12 of the run key>/
    key.json        the run key and its parts, written first
    samples.jsonl   one line a sample, append-only
    scores/         one file per metric and profile
    run.json        written last
    mhe.log         warnings and tracebacks
    lock            held by the process that works here
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mhe.documents.run import RunRecord
from mhe.errors import BusyError, DocumentError, StorageError
from mhe.values import Failure, Response

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

KEY_LENGTH = 12


def safe_name(name: str) -> str:
    """A name as one part of a path on any system."""
    return re.sub(r"[^A-Za-z0-9._@-]+", "--", name).strip(".-") or "unnamed"


def is_disk_refusing(error: BaseException) -> bool:
    """Whether an error says that there is no more room to write: the disk, the user's quota, or the process's limit.

    Libraries in Rust raise errors of their own, which have the number of the operating system's in their text.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in numbers
    return any(f"(os error {number})" in str(error) for number in numbers)


def write_atomically(path: Path, text: str) -> None:
    """Write by rename, so that a reader sees the old content or the new, never half of it.

    Raises `StorageError` where the disk refuses.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    except OSError as error:
        # Where a part of the path is a file, not even the draft's name can be asked for.
        with suppress(OSError):
            draft.unlink()
        raise StorageError(f"{path} cannot be written: {error.strerror}. Nothing before it is lost.") from None


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Hold the folder's lock. Raises `BusyError`, naming the process that holds it; a killed holder holds nothing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(f"{folder} cannot be used: {error.strerror}.") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 200).decode("utf-8", "replace").strip() or "another process"
            raise BusyError(
                f"{holder} is already {doing} in {folder}. Wait for it, or stop it; what it has done is kept."
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock; nothing is created."""
    try:
        handle = os.open(folder / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


class RunFolder:
    """The folder of one run key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: int | None = None
        self._size = 0

    @classmethod
    def of(cls, runs_dir: Path, task: str, model: str, key: str) -> Self:
        """Where the run with this key lies; nothing is created."""
        return cls(runs_dir / safe_name(task) / safe_name(model) / key[:KEY_LENGTH])

    def start(self, key: str, parts: Mapping[str, object]) -> None:
        """Write `key.json`. Raises `DocumentError` where another run's key shares the first digits."""
        path = self.path / "key.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8")).get("run_key")
            if found != key:
                raise DocumentError(str(path), [f"belongs to run {found}; use another --runs-dir"])
            return
        write_atomically(path, json.dumps({"run_key": key, "parts": parts}, indent=2, ensure_ascii=False) + "\n")

    def clear(self) -> None:
        """Forget answers, scores and record (`--fresh`)."""
        for path in [self.path / "run.json", self.path / "samples.jsonl", *self.path.glob("scores/*.json")]:
            path.unlink(missing_ok=True)

    def record(self) -> RunRecord | None:
        """The record of a finished run; None where there is none."""
        path = self.path / "run.json"
        return RunRecord.from_json(path) if path.exists() else None

    def finish(self, record: RunRecord) -> None:
        """Write `run.json`, last."""
        write_atomically(self.path / "run.json", record.to_json())

    def log(self, text: str) -> None:
        """Add to `mhe.log`. A log that cannot be written must not end a run."""
        try:
            with (self.path / "mhe.log").open("a", encoding="utf-8") as stream:
                stream.write(text.rstrip("\n") + "\n")
        except OSError:
            return

    # ------------------------------------------------------------ answers

    def responses(self, requests: Mapping[str, str], *, retry_system: bool = False) -> dict[str, Response]:
        """Answers on disk, by sample id. `requests` maps the run's sample ids to request digests.

        A line torn by a kill is cut off. With `retry_system`, errors of the system are taken out of the file, so
        that they are tried again. Raises `DocumentError` for a damaged line that is not the last.
        """
        path = self.path / "samples.jsonl"
        if not path.exists():
            return {}
        data = path.read_bytes()
        found: dict[str, Response] = {}
        kept: list[bytes] = []
        lines = data.split(b"\n")
        for number, line in enumerate(lines[:-1], 1):
            try:
                response = _read_line(line, requests)
            except (ValueError, KeyError, TypeError) as error:
                if any(rest.strip(b"\0 ") for rest in lines[number:]):
                    raise DocumentError(
                        str(path), [f"line {number}: damaged ({error}); run again with --fresh to start over"]
                    ) from None
                break
            if response.sample_id in found:
                raise DocumentError(str(path), [f"line {number}: the id {response.sample_id!r} stands twice"])
            if retry_system and response.error is not None and response.error.kind == "system":
                continue
            found[response.sample_id] = response
            kept.append(line + b"\n")
        whole = b"".join(kept)
        if whole != data and retry_system:
            write_atomically(path, whole.decode("utf-8"))
        return found

    @contextmanager
    def appending(self) -> Iterator[RunFolder]:
        """Keep `samples.jsonl` open for `append`."""
        try:
            self._stream = os.open(self.path / "samples.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._size = os.fstat(self._stream).st_size
        except OSError as error:
            raise StorageError(f"{self.path}/samples.jsonl cannot be opened: {error.strerror}.") from None
        try:
            yield self
        finally:
            os.close(self._stream)
            self._stream = None

    def append(self, responses: Iterable[tuple[Response, str]]) -> None:
        """Write answers with their request digests, whole lines in one call.

        Raises `StorageError` where the disk refuses; the file then ends with the last whole answer.
        """
        assert self._stream is not None, "append is used inside appending()"
        data = b"".join(_line(response, digest) for response, digest in responses)
        try:
            written = 0
            while written < len(data):
                written += os.write(self._stream, data[written:])
        except OSError as error:
            os.ftruncate(self._stream, self._size)
            raise StorageError(
                f"{self.path}/samples.jsonl: {error.strerror}. Every answer before this one is kept: "
                "make room and run the same command again."
            ) from None
        self._size += len(data)


def _line(response: Response, request_digest: str) -> bytes:
    content = {name: value for name, value in asdict(response).items() if value is not None}
    content = {"id": content.pop("sample_id"), "request": request_digest, **content}
    # ASCII, because a text may hold a lone surrogate, which UTF-8 cannot carry.
    return json.dumps(content).encode("ascii") + b"\n"


def _read_line(line: bytes, requests: Mapping[str, str]) -> Response:
    content = json.loads(line)
    sample_id = content.pop("id")
    digest = content.pop("request")
    if requests.get(sample_id) != digest:
        raise ValueError(f"the request of {sample_id!r} is not this run's")
    error = content.pop("error", None)
    return Response(sample_id=sample_id, error=Failure(**error) if error else None, **content)
