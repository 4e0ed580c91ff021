"""Rows of a parquet copy of a data set: from the hub at its pinned revision, or from a folder with the same files.

Few rows are streamed and kept in memory; a whole split is fetched into the cache of `datasets`, from where an
image's bytes are read when they are asked for, so that eighteen gigabytes never lie in memory.
"""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from mhe import BytesSource, DocumentError, MissingExtraError, SampleDataError

if TYPE_CHECKING:
    from mhe import ImageSource, ReadContext
    from mhe_tasks.readers.release import Release

STREAMED_AT_MOST = 512
"""Up to this many rows, streaming is quicker than fetching a split."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One split of one copy at one revision."""

    path: str
    """`owner/name` on the hub, or a local folder with parquet files."""
    revision: str | None
    split: str

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.path}{f'@{self.revision}' if self.revision else ''}, split {self.split}"


@dataclass(frozen=True, slots=True)
class TableImage:
    """An image in a row of a fetched split; reopened where it is unpickled."""

    copy: Copy
    row: int

    def read(self) -> bytes:
        """The encoded image. Raises `SampleDataError` for a row without one."""
        cell = _open_table(self.copy)[self.row]["image"]
        data = cell.get("bytes") if isinstance(cell, dict) else None
        if not data:
            raise SampleDataError(f"image in row {self.row} of {self.copy.place}: no bytes")
        return bytes(data)

    def digest(self) -> str:
        """Content digest; of a row without an image, one that matches no content."""
        return _row_digest(self.copy, self.row)


@lru_cache(maxsize=200_000)
def _row_digest(copy: Copy, row: int) -> str:
    try:
        return hashlib.sha256(TableImage(copy, row).read()).hexdigest()
    except SampleDataError:
        return hashlib.sha256(f"unreadable:{copy.split}:{row}".encode()).hexdigest()


def find_copy(context: ReadContext, split: str) -> Copy | None:
    """The copy to read: parquet files in the data folder, else the hub's, unless offline."""
    folder = context.data_dir
    if folder is not None:
        has_parquet = any(folder.glob("*.parquet")) or any(folder.glob("data/*.parquet"))
        return Copy(str(folder), None, split) if has_parquet else None
    if context.hub and not context.offline:
        return Copy(context.hub, context.revision, split)
    return None


def refuse_unreachable_hub(context: ReadContext, release: Release) -> None:
    """Raise `DataMissingError` at once where the hub's name is not known here; its library retries for a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON") or getproxies():
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        reason = (
            f"its hub copy {context.hub} cannot be asked for, because {host} is not known here "
            "(a copy fetched before is used with HF_HUB_OFFLINE=1)"
        )
        raise release.missing(context, reason) from None


def read_rows(
    copy: Copy, columns: Sequence[str], context: ReadContext, release: Release
) -> Iterator[tuple[Mapping[str, object], ImageSource]]:
    """Each row's text columns and its image, in order.

    Raises `MissingExtraError` without `datasets`, `DataMissingError` where the copy cannot be had, and
    `DocumentError` where it has other columns.
    """
    if context.data_dir is None:
        refuse_unreachable_hub(context, release)
    is_streamed = context.limit is not None and context.limit <= STREAMED_AT_MOST
    try:
        table = _load(copy, streaming=True) if is_streamed else _open_table(copy)
    except (MissingExtraError, DocumentError):
        raise
    except Exception as error:
        raise release.missing(context, reason_of(error, copy.place)) from error
    _check_columns(copy, table, ["image", *columns])
    if is_streamed:
        try:
            for row in islice(table, context.limit):
                cell = row["image"] or {}
                yield {name: row[name] for name in columns}, BytesSource(bytes(cell.get("bytes") or b""))
        except Exception as error:  # as above, in the middle of the stream
            raise release.missing(context, reason_of(error, copy.place)) from error
        return
    for number, row in enumerate(table.select_columns(list(columns))):
        yield row, TableImage(copy, number)


def reason_of(error: Exception, place: str) -> str:
    """One line about what the hub's libraries raised.

    Missing repositories, refused connections and full disks reach us as a dozen unrelated classes, some without a word.
    """
    said = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__} for {place}: {said}".rstrip(":. ")


def _check_columns(copy: Copy, table: Any, columns: Sequence[str]) -> None:  # noqa: ANN401 - untyped library
    found = table.column_names
    if found is None:
        return
    absent = [name for name in columns if name not in found]
    if absent:
        raise DocumentError(copy.place, [f"no column {name!r}; found: {', '.join(found)}" for name in absent])


@lru_cache(maxsize=4)
def _open_table(copy: Copy) -> Any:  # noqa: ANN401 - untyped library
    return _load(copy, streaming=False)


def _load(copy: Copy, *, streaming: bool) -> Any:  # noqa: ANN401 - untyped library
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("data", "reading the hub copy of a data set", "datasets") from None
    table = datasets.load_dataset(copy.path, revision=copy.revision, split=copy.split, streaming=streaming)
    if table.column_names is not None and "image" not in table.column_names:
        return table
    return table.cast_column("image", datasets.Image(decode=False))
