"""Image features, computed once for each distinct image and kept, by the contents of encoder and image.

One SQLite file in the cache folder, safe for many processes; 2 kB an image at a width of 512. Each batch is kept as
soon as it is made, so that a killed scoring loses one. A cache that cannot be used is done without: features are
then kept for this process alone.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from mhe import SampleDataError, open_image

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Image
    from mhe_metrics.clip_encoder import ClipEncoder

    Vector = NDArray[np.float32]

FORMAT = 1
"""Rises when what is kept under a key would be computed otherwise."""
ASKED_AT_ONCE = 500


class FeatureStore:
    """Vectors by encoder and image."""

    def __init__(self, path: Path) -> None:
        self._connection = _connect(path)

    def get(self, encoder: str, images: Iterable[str]) -> dict[str, Vector]:
        """The kept vectors, by image digest; what is not there, or not sound, is left out."""
        import numpy as np

        wanted = list(images)
        found: dict[str, Vector] = {}
        for start in range(0, len(wanted), ASKED_AT_ONCE):
            some = wanted[start : start + ASKED_AT_ONCE]
            marks = ",".join("?" * len(some))
            question = f"SELECT image, vector FROM features WHERE encoder = ? AND image IN ({marks})"  # noqa: S608 - marks only
            try:
                rows = self._connection.execute(question, (encoder, *some)).fetchall()
            except sqlite3.Error:
                self._connection = _in_memory()
                return found
            for image, content in rows:
                vector = np.frombuffer(content, dtype="<f4")
                if vector.size and abs(float(np.linalg.norm(vector)) - 1) < 1e-3:
                    found[image] = vector
        return found

    def put(self, encoder: str, vectors: Mapping[str, Vector]) -> None:
        """Keep vectors of length 1 by image digest."""
        rows = [(encoder, image, vector.astype("<f4").tobytes()) for image, vector in vectors.items()]
        command = "INSERT OR REPLACE INTO features VALUES (?, ?, ?)"
        try:
            with self._connection:
                self._connection.executemany(command, rows)
        except sqlite3.Error:
            # Losing them costs time only.
            self._connection = _in_memory()
            with self._connection:
                self._connection.executemany(command, rows)


def _connect(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=30, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        _make_table(connection)
    except (OSError, sqlite3.Error):
        return _in_memory()
    return connection


def _in_memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    _make_table(connection)
    return connection


def _make_table(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS features (encoder TEXT, image TEXT, vector BLOB, PRIMARY KEY (encoder, image))"
        )


_stores: dict[Path, FeatureStore] = {}


def open_store(cache_dir: Path) -> FeatureStore:
    """The store in a cache folder, one in a process."""
    place = (cache_dir / "image-features.sqlite").absolute()
    if place not in _stores:
        _stores[place] = FeatureStore(place)
    return _stores[place]


def find_features(
    images: Mapping[str, Image], encoder: ClipEncoder, store: FeatureStore, *, encoder_digest: str, batch_size: int
) -> tuple[dict[str, Vector], dict[str, str]]:
    """Vectors of images, which stand under the digests of their sources; and why others cannot be read.

    Both by digest. What can be read is encoded and kept even where something cannot.
    """
    key = f"{FORMAT}, {encoder.variant}, {encoder_digest}"
    found = store.get(key, images)
    # By digest, so that a batch, and its last bits, do not depend on the order of the samples.
    missing = sorted(digest for digest in images if digest not in found)
    problems: dict[str, str] = {}
    for start in range(0, len(missing), batch_size):
        batch = {}
        for digest in missing[start : start + batch_size]:
            image = images[digest]
            try:
                batch[digest] = encoder.pixels(open_image(image))
                # Kept under a digest of other content, it would be given to another image one day.
                is_changed = image.source.digest() != digest
            except SampleDataError as error:
                problems[digest] = str(error)
            else:
                if is_changed:
                    problems[digest] = f"image {image.id}: it changed while it was read"
            if digest in problems:
                batch.pop(digest, None)
        if batch:
            vectors = dict(zip(batch, encoder.encode_images(list(batch.values())), strict=True))
            store.put(key, vectors)
            found.update(vectors)
    return found, problems
