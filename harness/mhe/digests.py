"""Content digests: canonical JSON for values, and file contents hashed once.

The digest of a file is cached by device, inode, size and both times, so that fifteen gigabytes of weights are
read once and a replaced or edited file is read again. Publishing passes `fresh=True`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from pathlib import Path

CHUNK = 1 << 20
SETTLED_NANOSECONDS = 1_000_000_000


def digest_of(value: object) -> str:
    """Hex SHA-256 of a JSON-able value, in a form that does not depend on the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def bytes_digest(data: bytes) -> str:
    """Hex SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def cache_dir() -> Path:
    """`$MHE_CACHE_DIR`, else `$XDG_CACHE_HOME/mhe`, else `~/.cache/mhe`."""
    if chosen := os.environ.get("MHE_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mhe"


class DigestCache:
    """File digests kept in one SQLite file; safe for many processes. A cache that cannot be used is done without."""

    def __init__(self, path: Path) -> None:
        self._connection: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=5, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute("CREATE TABLE IF NOT EXISTS digests (stat TEXT PRIMARY KEY, digest TEXT)")
        except (OSError, sqlite3.Error):
            return
        self._connection = connection

    def get(self, key: str) -> str | None:
        """The kept digest, or None."""
        if self._connection is None:
            return None
        try:
            row = self._connection.execute("SELECT digest FROM digests WHERE stat = ?", (key,)).fetchone()
        except sqlite3.Error:
            return None
        return str(row[0]) if row else None

    def put(self, key: str, digest: str) -> None:
        """Keep a digest; losing one costs time only, so errors end the use of the cache."""
        if self._connection is None:
            return
        try:
            self._connection.execute("INSERT OR REPLACE INTO digests VALUES (?, ?)", (key, digest))
        except sqlite3.Error:
            self._connection = None


_caches: dict[Path, DigestCache] = {}


def file_digest(path: Path, *, fresh: bool = False) -> str:
    """Hex SHA-256 of a file's content. Raises `OSError` where it cannot be read."""
    with path.open("rb") as stream:
        stat = os.fstat(stream.fileno())
        key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
        place = cache_dir() / "digests.sqlite"
        if place not in _caches:
            _caches[place] = DigestCache(place)
        cache = _caches[place]
        if not fresh and (kept := cache.get(key)):
            return kept
        hasher = hashlib.sha256()
        while chunk := stream.read(CHUNK):
            hasher.update(chunk)
        digest = hasher.hexdigest()
        # Two writes within one tick of the clock leave the same times, so a file touched just now is not remembered;
        # nor is one that changed while it was read.
        after = os.fstat(stream.fileno())
        is_settled = time.time_ns() - after.st_ctime_ns > SETTLED_NANOSECONDS
        if is_settled and (after.st_size, after.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns):
            cache.put(key, digest)
        return digest
